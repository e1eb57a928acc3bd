"""How scorers are reported, and what metrics.json holds."""

import json

import numpy as np
from workflows.cluster.scorers import scaled_metrics

from workflows.cluster.tracking import write_json


def test_a_scale_of_zero_takes_the_probability_and_leaves_the_ranking():
    rng = np.random.default_rng(0)
    margin, gap = rng.normal(0.5, 1, 200), rng.integers(-50, 50, 200)
    key = np.arange(200).astype(str).astype(object)
    silent, sure = (scaled_metrics(margin, scale, gap, key) for scale in (0.0, 1.0))
    assert silent["accuracy"] == sure["accuracy"] == (margin > 0).mean()
    assert silent["ties"] == 0
    assert np.isclose(silent["log_loss"], np.log(2))
    assert sure["log_loss"] < silent["log_loss"]


def test_metrics_are_strict_json_and_undefined_is_null(tmp_path):
    write_json(tmp_path / "m.json", {"a": {"b": float("nan"), "c": [1.5, float("inf")]}, "d": 2})
    assert json.loads((tmp_path / "m.json").read_text()) == {
        "a": {"b": None, "c": [1.5, None]},
        "d": 2,
    }
