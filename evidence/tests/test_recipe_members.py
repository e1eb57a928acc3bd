"""Members of one recipe: rules on planted errors."""

import pytest

from evidence.members import SINGLE, planted, summary

SIZES = (1, 4, 256, 1000)


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
