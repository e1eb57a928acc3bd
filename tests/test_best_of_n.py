"""Best of n: the estimator against enumeration, missing numbers, and where gold turns down."""

from itertools import combinations

import numpy as np
import pytest

from panoply.measure.best_of_n import expected_best, kl_of, turn_down


@pytest.mark.parametrize("ties", [False, True])
def test_the_expected_gold_is_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    gold = rng.normal(size=8)
    proxy = np.array([0, 1, 1, 2, 2, 2, 3, 3.0]) if ties else rng.normal(size=8)
    for n in range(1, 9):
        values = []
        for subset in combinations(range(8), n):
            best = [i for i in subset if proxy[i] == max(proxy[list(subset)])]
            group = [i for i in range(8) if proxy[i] == proxy[best[0]]]
            values.append(gold[group].mean())
        assert expected_best(proxy, gold, [n])[0] == pytest.approx(np.mean(values), abs=1e-12)


def test_of_one_sample_it_is_the_mean_and_of_all_the_best_and_more_there_are_not():
    proxy, gold = [0.3, -1.0, 2.0, 0.0], [1.0, 0.0, 0.5, 0.25]
    one, four, five = expected_best(proxy, gold, [1, 4, 5])
    assert one == pytest.approx(np.mean(gold))
    assert four == pytest.approx(0.5)
    assert np.isnan(five)
    # The proxy's own curve never falls.
    curve = expected_best(proxy, proxy, [1, 2, 3, 4])
    assert (np.diff(curve) > 0).all()


def test_a_missing_number_leaves_its_sample_out_and_is_never_zero():
    proxy, gold = [3.0, np.nan, 1.0, 2.0], [0.0, 1.0, np.nan, 1.0]
    both = expected_best([3.0, 2.0], [0.0, 1.0], [1, 2])
    assert expected_best(proxy, gold, [1, 2]) == pytest.approx(both)
    assert np.isnan(expected_best(proxy, gold, [3])).all()
    assert np.isnan(expected_best([np.nan], [1.0], [1])).all()


def test_a_monotone_change_of_the_proxy_changes_nothing_and_neither_does_the_order_of_samples():
    rng = np.random.default_rng(1)
    proxy, gold = rng.normal(size=30), rng.normal(size=30)
    sizes = [1, 2, 7, 30]
    expected = expected_best(proxy, gold, sizes)
    assert expected_best(np.exp(3 * proxy), gold, sizes) == pytest.approx(expected)
    order = rng.permutation(30)
    assert expected_best(proxy[order], gold[order], sizes) == pytest.approx(expected)


def test_the_distance_from_the_policy_is_zero_for_one_sample_and_grows_like_the_logarithm():
    assert kl_of(1) == 0
    assert kl_of(4) == pytest.approx(np.log(4) - 0.75)


def test_gold_that_turns_down_is_told_with_its_interval_and_gold_that_rises_is_not():
    rng = np.random.default_rng(2)
    sizes = [1, 4, 16, 64]
    overdone, sound = [], []
    for _ in range(60):
        gold = rng.normal(size=64)
        errors = rng.normal(size=64) * np.where(rng.random(64) < 0.1, 8.0, 0.3)
        overdone.append(expected_best(gold + errors, gold, sizes))
        sound.append(expected_best(gold + 0.3 * rng.normal(size=64), gold, sizes))
    turned = turn_down(np.array(overdone))
    assert turned["peak"] in (1, 2)
    assert turned["ci95"][1] < 0
    assert turned["ci95"][0] < turned["value"] < 0
    assert turn_down(np.array(sound)) == {"value": 0.0, "ci95": [0.0, 0.0], "peak": 3.0}
    # A prompt with a hole is left out whole, so that every n has the same prompts.
    holes = np.array([*sound, [0.0, np.nan, 0.0, -9.0]])
    assert turn_down(holes)["value"] == 0.0
    assert np.isnan(turn_down(np.full((3, 4), np.nan))["value"])
