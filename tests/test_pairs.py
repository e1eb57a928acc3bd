"""Pairs stay within a prompt, and what gives none is left out and counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoply.laser.pairs import build_pairs


def test_one_pair_is_best_against_worst():
    found = build_pairs(["a", "b", "c", "d"], [0.1, 2.0, -1.0, 0.5])
    assert found.pairs == ((1, 2),)
    assert found.gaps == (3.0,)
    assert (found.num_failed, found.num_repeated, found.num_ties) == (0, 0, 0)


def test_more_pairs_are_the_next_best_against_the_next_worst():
    found = build_pairs(["a", "b", "c", "d", "e"], [0.1, 2.0, -1.0, 0.5, 0.3], num_pairs=10)
    assert found.pairs == ((1, 2), (3, 0))  # e, in the middle, has nobody left


def test_failed_scores_are_left_out_and_counted():
    found = build_pairs(["a", "b", "c", "d"], [math.nan, 1.0, math.inf, 0.0], num_pairs=2)
    assert found.pairs == ((1, 3),)
    assert found.num_failed == 2
    nothing = build_pairs(["a", "b"], [math.nan, 1.0])
    assert nothing.pairs == ()
    assert build_pairs([], []).pairs == ()


def test_ties_are_left_out_and_counted():
    found = build_pairs(["a", "b", "c"], [1.0, 1.0, 1.0])
    assert found.pairs == ()
    assert found.num_ties == 1
    close = build_pairs(list("abcd"), [1.0, 0.5, 0.49, 0.0], num_pairs=2, min_gap=0.1)
    assert close.pairs == ((0, 3),)
    assert close.num_ties == 1


def test_a_text_that_comes_again_is_in_no_second_pair():
    found = build_pairs(["a", "b", "a", "c"], [1.0, 0.0, 1.0001, 0.4], num_pairs=2)
    assert found.pairs == ((0, 1),)
    assert found.num_repeated == 1
    failed_first = build_pairs(["a", "a", "b"], [math.nan, 1.0, 0.0])
    assert failed_first.pairs == ((1, 2),)


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=9), st.integers(1, 6))
def test_every_response_is_counted_and_used_once_at_most(scores, num_pairs):
    found = build_pairs([str(i) for i in range(len(scores))], scores, num_pairs)
    used = [i for pair in found.pairs for i in pair]
    assert len(used) == len(set(used))
    assert all(scores[i] > scores[j] for i, j in found.pairs)
    usable = len(scores) - found.num_failed
    assert len(found.pairs) + found.num_ties == min(num_pairs, usable // 2)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="2 responses do not match"):
        build_pairs(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="`num_pairs` must be"):
        build_pairs(["a"], [1.0], num_pairs=0)
