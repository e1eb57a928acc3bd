"""Pairs stay within a prompt, and what gives none is left out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoply.laser.pairs import build_pairs


def test_one_pair_is_best_against_worst():
    assert build_pairs(["a", "b", "c", "d"], [0.1, 2.0, -1.0, 0.5]) == ((1, 2),)


def test_more_pairs_are_the_next_best_against_the_next_worst():
    pairs = build_pairs(["a", "b", "c", "d", "e"], [0.1, 2.0, -1.0, 0.5, 0.3], num_pairs=10)
    assert pairs == ((1, 2), (3, 0))  # e, in the middle, has nobody left


def test_failed_scores_are_left_out():
    pairs = build_pairs(["a", "b", "c", "d"], [math.nan, 1.0, math.inf, 0.0], num_pairs=2)
    assert pairs == ((1, 3),)
    assert build_pairs(["a", "b"], [math.nan, 1.0]) == ()
    assert build_pairs([], []) == ()


def test_ties_are_left_out():
    assert build_pairs(["a", "b", "c"], [1.0, 1.0, 1.0]) == ()
    assert build_pairs(list("abcd"), [1.0, 0.5, 0.5, 0.0], num_pairs=2) == ((0, 3),)


def test_a_text_that_comes_again_is_in_no_second_pair():
    assert build_pairs(["a", "b", "a", "c"], [1.0, 0.0, 1.0001, 0.4], num_pairs=2) == ((0, 1),)
    assert build_pairs(["a", "a", "b"], [math.nan, 1.0, 0.0]) == ((1, 2),)


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=9), st.integers(1, 6))
def test_every_response_is_used_once_at_most(scores, num_pairs):
    pairs = build_pairs([str(i) for i in range(len(scores))], scores, num_pairs)
    used = [i for pair in pairs for i in pair]
    assert len(used) == len(set(used))
    assert all(scores[i] > scores[j] for i, j in pairs)
    ranked = sorted(score for score in scores if not math.isnan(score))
    limit = min(num_pairs, len(ranked) // 2)
    assert len(pairs) == sum(ranked[i] < ranked[-1 - i] for i in range(limit))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="2 responses do not match"):
        build_pairs(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="`num_pairs` must be"):
        build_pairs(["a"], [1.0], num_pairs=0)
