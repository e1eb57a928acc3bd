"""Scorers beside a gate: one arithmetic on pairs and on responses, and what is reported."""

import json
from dataclasses import replace

import numpy as np

from panoply.armorm.baselines import BASELINES, CONTROLS, RIVALS, FittedBaselines, PairInputs
from panoply.armorm.pair_features import PairFeatures
from panoply.data.tables import PairTable, Split
from panoply.files import write_json
from panoply.measure.pair_report import scaled_metrics


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


def example_inputs(num=600, size=6, seed=0):
    """Pairs of two sources whose chosen responses have more of the first objective or feature."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, num, 3))
    values[0, :, 0] += 1
    x = rng.normal(size=(2, num, size)).astype(np.float32)
    x[0, :, 0] += 1
    keys = [f"prompt {i}" for i in range(num)]
    ids = np.array(keys, dtype=object)
    source = np.array(["east", "west"] * (num // 2), dtype=object)
    length = np.full(num, 10)
    split = Split.make(keys, seed, 2)
    pairs = PairTable(ids, ids, ids, source, source, length, length, split)
    return pairs, values, PairInputs(PairFeatures(x[0], x[1], x[0]), values[0] - values[1])


def test_the_margin_of_a_pair_is_the_difference_of_its_responses_scores():
    pairs, values, inputs = example_inputs()
    fitted = FittedBaselines.fit(pairs, inputs)
    margins = fitted.margins(inputs, pairs.source_P)
    chosen = fitted.scores(values[0], inputs.features.chosen_PF)
    rejected = fitted.scores(values[1], inputs.features.rejected_PF)
    for name in BASELINES:
        np.testing.assert_allclose(margins[name], chosen[name] - rejected[name], atol=1e-6)
        assert (margins[name] > 0).mean() > 0.6
    for source in ("east", "west"):
        rows, name = pairs.source_P == source, f"per_source.{source}"
        np.testing.assert_allclose(
            margins["best_fixed_per_source"][rows], (chosen[name] - rejected[name])[rows]
        )


def test_baselines_survive_the_file_beside_a_model():
    pairs, values, inputs = example_inputs()
    fitted = FittedBaselines.fit(pairs, inputs)
    again = FittedBaselines.from_arrays(fitted.to_arrays() | {"scale.gate": np.array(2.0)})
    scores = fitted.scores(values[0], inputs.features.chosen_PF)
    for name, score in again.scores(values[0], inputs.features.chosen_PF).items():
        np.testing.assert_array_equal(score, scores[name])


def test_a_source_without_training_pairs_has_no_weights_of_its_own():
    pairs, _, inputs = example_inputs()
    source = pairs.source_P.copy()
    source[pairs.split.of("test")[:3]] = "new"
    pairs = replace(pairs, source_P=source)
    margins = FittedBaselines.fit(pairs, inputs).margins(inputs, source)
    assert np.isnan(margins["best_fixed_per_source"][source == "new"]).all()
    assert np.isfinite(margins["best_fixed_per_source"][source != "new"]).all()


def test_what_the_gate_is_compared_with_is_scored():
    assert set(RIVALS) == {"best_fixed", "linear_bt", "mlp"}
    assert not set(RIVALS) & set(CONTROLS)
