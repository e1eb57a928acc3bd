"""Members of one recipe: the estimator against enumeration, and rules on planted errors."""

from itertools import combinations

import numpy as np
import pytest

from evidence.members import SINGLE, best_of, planted, summary

SIZES = (1, 4, 256, 1000)


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
        assert best_of(proxy, gold, [n])[0] == pytest.approx(np.mean(values), abs=1e-12)


def test_caution_costs_at_four_samples_and_wins_at_a_thousand_where_errors_are_the_members_own():
    figures = summary([planted(seed, SIZES) for seed in range(40)], SIZES)
    gold = {name: figure["gold"] for name, figure in figures.items()}
    assert gold["mean"]["4"] > gold["WCO"]["4"] > gold[SINGLE]["4"]
    for rule in ("LCB, beta 1", "UWO, lambda .5", "WCO"):
        assert gold[rule]["1000"] > gold["mean"]["1000"] + 0.5
        assert figures[rule]["turn"] == 0
    assert figures[SINGLE]["turn"] < -0.1  # more samples make its choice worse
    assert gold["mean"]["1000"] < gold["mean"]["256"] + 0.05
    assert gold["mean"]["1"] == pytest.approx(0, abs=0.02)
