"""Paired differences of the preference experiments, against what the metrics themselves say."""

import numpy as np
import pytest

from evidence.preference_results import Seed, difference
from panoply.data.tables import PairTable, Split
from panoply.measure.calibration import ece, log_loss
from panoply.measure.metrics import pair_metrics

SOURCES = ("poems", "proofs")


def drawn(number, size=240):
    """A seed with a good model and a sure one that is no better than chance."""
    rng = np.random.default_rng(number)
    names = np.array([f"{number} {i}" for i in range(size)], dtype=object)
    keys = [f"prompt {i}" for i in rng.integers(size // 3, size=size)]
    table = PairTable(
        prompt_P=names,
        chosen_P=names,
        rejected_P=names,
        source_P=rng.choice(np.array(SOURCES, dtype=object), size),
        domain_P=names,
        chosen_length_P=rng.integers(1, 90, size),
        rejected_length_P=rng.integers(1, 90, size),
        split=Split.make(keys, number, 2),
    )
    seed = Seed(table, np.arange(0, size, 2), {"all ": SOURCES, "poems ": SOURCES[:1]})
    for name, mean, spread in (("good", 1.0, 1.0), ("sure", 0.0, 6.0)):
        seed.add(name, rng.normal(mean, spread, len(seed.rows)), 0.5)
    return seed


def direct(seed, name, part, metric):
    """A model's metric on a part, from the metrics' own functions."""
    source_P, gap_P = seed.table.source_P[seed.rows], seed.table.gap_P[seed.rows]
    margin_P = seed.margins[name] * (seed.scales[name] if metric.endswith("_fitted") else 1.0)
    wanted = seed.parts[part]
    if metric.startswith("ece"):
        return ece(margin_P[np.isin(source_P, wanted)])
    own = [source_P == source for source in wanted]
    if metric.startswith("log_loss"):
        return np.mean([log_loss(margin_P[at]) for at in own])
    found = [pair_metrics(margin_P[at], gap_P[at], source_P[at], draws=2) for at in own]
    return np.mean([metrics["accuracy_length_balanced"] for metrics in found])


@pytest.mark.parametrize("part", ["all ", "poems "])
@pytest.mark.parametrize("metric", ["balanced", "log_loss", "log_loss_fitted", "ece", "ece_fitted"])
def test_a_difference_is_that_of_the_metrics(part, metric):
    seeds = [drawn(0), drawn(1)]
    found = difference(seeds, "good", "sure", part)[metric]
    apart = [direct(s, "good", part, metric) - direct(s, "sure", part, metric) for s in seeds]
    assert found["value"] == pytest.approx(np.mean(apart), abs=1e-12)
    low, high = found["ci95"]
    assert low < found["value"] < high


def test_a_clear_difference_is_beyond_its_interval_and_none_is_not():
    seeds = [drawn(0), drawn(1)]
    assert difference(seeds, "good", "sure", "all ")["balanced"]["ci95"][0] > 0.1
    for found in difference(seeds, "good", "good", "all ").values():
        assert found == {**found, "value": 0.0, "ci95": [0.0, 0.0]}
