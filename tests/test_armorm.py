"""The whole run on a tiny random model: what it leaves, what it refuses, what it repeats."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from panoply.armorm import ComparedResponses, RatedResponses, fit
from panoply.armorm.feature_selection import FeatureSpec
from panoply.config import BackboneConfig
from panoply.config.armorm import ArmoRMConfig, GateConfig, ObjectivesConfig, SyntheticConfig
from panoply.config.evaluate import EvaluateConfig
from panoply.data.features import FeatureStore
from panoply.hub.artefact.load import load_reward_model
from panoply.report.progress import RunLogger
from panoply.synthetic.planted import make_world

SCORERS = [
    "gate",
    "uniform",
    "best_fixed",
    "best_fixed_per_source",
    "best_single",
    "linear",
    "linear_bt",
    "mlp",
    "gate_mean",
]
QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]


def tiny_config(folder, model, **changes):
    config = ArmoRMConfig(
        out=str(folder / "run"),
        planted=SyntheticConfig(num_prompts=150, num_responses=3),
        backbone=BackboneConfig(
            model=str(model),
            dtype="float32",
            depths=(0.34, 0.67),
            poolings=("last", "both"),
            sample_prompts=60,
        ),
        objectives=ObjectivesConfig(num_folds=3, block_rows=64),
        gate=GateConfig(hidden_size=16, num_steps=60, eval_every=20),
        num_workers=0,
        leave_one_out=False,
        store=str(folder / "store"),
    )
    return replace(config, **changes)


@pytest.fixture(scope="session")
def finished(cluster, tiny_model_folder, tmp_path_factory):
    from workflows.armorm import run_armorm

    folder = tmp_path_factory.mktemp("armorm")
    config = tiny_config(folder, tiny_model_folder, preference_objectives=True)
    return config, folder, run_armorm(config, RunLogger())


def test_a_run_leaves_config_metrics_plots_and_model(finished):
    _, folder, _ = finished
    out = folder / "run"
    names = {path.name for path in out.iterdir()}
    wanted = {"config.json", "metrics.json", "model", "gate_weights.png", "baselines.png"}
    wanted |= {"report.html", "mistakes.json"}
    assert wanted | {"reliability.png", "length_bias.png"} <= names
    metrics = json.loads((out / "metrics.json").read_text())
    for scorer in SCORERS:
        own = metrics["pairs"][scorer]
        keys = {"accuracy", "accuracy_length_balanced", "ties", "log_loss", "ece", "ece_floor"}
        assert keys | {"ci95"} <= set(own)
        assert all(keys <= set(found) for found in own["per_source"].values())
    for own in metrics["objectives"].values():
        assert {"pearson", "spearman", "r2", "n", "length_spearman", "strength"} <= set(own)
    assert metrics["debias"]["max_abs_spearman_after"] <= 0.02
    assert {"oracle", "gate", "best_fixed", "recovered"} <= set(metrics["planted"])
    assert sum(place["chosen"] for place in metrics["layer_choice"]) == 1
    card = (out / "model" / "README.md").read_text()
    assert all(name in card for name in metrics["objectives"])
    assert metrics["data"]["pairs"]["id"] in card


def test_the_saved_model_scores_and_explains(finished):
    _, folder, metrics = finished
    assert metrics["artefact"]["round_trip_drift"] < 1e-3
    model = load_reward_model(folder / "run" / "model")
    alone, among = (
        model.score(QUESTION, ["Ten minutes."]),
        model.score(QUESTION, ["No", "Ten minutes."]),
    )
    assert alone[0] == pytest.approx(among[1], rel=1e-4)
    why = model.explain(QUESTION, "Ten minutes.")
    assert why.score == pytest.approx(float(alone[0]), rel=1e-4)
    assert {d.objective for d in why.drivers} == set(model.manifest.objectives)
    strengths = [abs(d.contribution) for d in why.drivers]
    assert strengths == sorted(strengths, reverse=True)
    # The drivers and the average response make up the score.
    scored = model.score_trees([model.backbone.renderer.render(QUESTION, ["Ten minutes."]).tree])
    average = float((scored.weights_BO[0] * model.head.center).sum())
    assert why.score == pytest.approx(average + sum(d.contribution for d in why.drivers), rel=1e-5)
    # A value in the source's own scale is the unit value, mapped back.
    own = next(d for d in why.drivers if d.objective == "editors-concise")
    unit = float(scored.values_BO[0, model.manifest.objectives.index("editors-concise")])
    assert own.value == pytest.approx(1 + 9 * unit, rel=1e-4)


def test_the_same_command_again_embeds_nothing_and_ends_with_the_same_numbers(finished):
    from workflows.armorm import run_armorm

    config, _, metrics = finished
    again = run_armorm(config, RunLogger())
    assert again["embedding"]["texts"] == 0
    assert again["pairs"]["gate"]["log_loss"] == metrics["pairs"]["gate"]["log_loss"]


def test_the_same_folder_with_another_configuration_is_refused(finished):
    from workflows.armorm import run_armorm

    config, _, _ = finished
    with pytest.raises(ValueError, match=r"holds a run with other settings \(seed: 0 -> 1\)"):
        run_armorm(replace(config, seed=1), RunLogger())


def test_the_same_folder_with_other_data_is_refused(tmp_path):
    from workflows.cluster.run_folder import check_or_write

    check_or_write(tmp_path / "data.json", {"ratings": "a", "pairs": "b"})
    check_or_write(tmp_path / "data.json", {"ratings": "a", "pairs": "b"})
    with pytest.raises(ValueError, match=r"other pairs \(see data.json\)"):
        check_or_write(tmp_path / "data.json", {"ratings": "a", "pairs": "c"})


def test_one_worker_and_four_give_the_same_model(finished, tiny_model_folder, tmp_path):
    from workflows.armorm import run_armorm

    config, folder, metrics = finished
    four = replace(config, out=str(tmp_path / "four"), num_workers=4)
    other = run_armorm(four, RunLogger())
    a, b = (
        load_file(f / "model" / "model.safetensors") for f in (folder / "run", tmp_path / "four")
    )
    for name in ("head.weight", "head.bias", "head.penalty", "head.length_weight"):
        assert np.array_equal(a[name], b[name])
    # As text: an interval of few prompts is no number, which is equal to nothing.
    fixed = [json.dumps(run["pairs"]["best_fixed"], sort_keys=True) for run in (other, metrics)]
    assert fixed[0] == fixed[1]
    for name in a:
        assert np.allclose(a[name], b[name], rtol=1e-6, atol=1e-9), name


def test_a_command_without_a_cluster_starts_none_and_gives_the_same_model(finished, tmp_path):
    _, folder, _ = finished
    places = {"out": str(tmp_path / "local"), "store": str(tmp_path / "store"), "num_workers": 2}
    settings = json.loads((folder / "run" / "config.json").read_text()) | places
    settings["backbone"]["token_budget"] = planned_budget(folder / "run")
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.armorm", "--config", tmp_path / "settings.json"],
        env=env | {"RAY_TMPDIR": str(tmp_path / "ray")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "ray").exists()
    runs = (folder / "run", tmp_path / "local")
    a, b = (load_file(run / "model" / "model.safetensors") for run in runs)
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def planned_budget(run):
    """The token budget of a run's plans: with another, features have other last bits."""
    (budget,) = {
        pq.read_schema(file).metadata[b"token_budget"] for file in (run / "embedding").iterdir()
    }
    return int(budget)


def test_evaluate_scores_new_pairs_and_knows_those_trained_on(finished, tmp_path):
    from workflows.evaluate import run_evaluate

    _, folder, _ = finished
    model = str(folder / "run" / "model")
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    for seed, num, file in ((7, 60, new), (0, 150, old)):
        pairs = make_world(seed, num_prompts=num, num_responses=3).pairs
        pq.write_table(pairs, file)
    config = EvaluateConfig(model=model, pairs=(str(new), str(old)), out=str(tmp_path / "eval"))
    found = run_evaluate(config, RunLogger())
    assert found["num_pairs"] == 60 * 3 + 150 * 3
    assert 0 < found["num_seen"] < found["num_pairs"]
    assert found["pairs"]["gate"]["n"] == found["num_pairs"] - found["num_seen"]
    assert found["pairs"]["gate"]["missing"] == 0
    assert (tmp_path / "eval" / "metrics.json").exists()


def test_an_objective_of_one_prompt_is_left_out_and_named(tiny_model_folder, tmp_path):
    from panoply.armorm.training_data import read_training_data

    one_prompt = rating_rows(60, lambda i: float(i % 3))
    one_prompt["prompt"] = [[{"role": "user", "content": "Rate the whole."}]] * 60
    rows = rating_rows(200)
    pq.write_table(pa.table(rows), tmp_path / "many.parquet")
    pq.write_table(pa.table(one_prompt), tmp_path / "one.parquet")
    pq.write_table(make_world(0, num_prompts=60).pairs, tmp_path / "pairs.parquet")
    files = {
        "ratings": (str(tmp_path / "many.parquet"), str(tmp_path / "one.parquet")),
        "pairs": (str(tmp_path / "pairs.parquet"),),
    }
    config = tiny_config(tmp_path, tiny_model_folder, planted=None, **files)
    data = read_training_data(config, tmp_path / "data")
    assert data.ratings.objectives == ("many-quality",)
    assert "of one prompt or group" in data.left_out["one-quality"]
    named = replace(config.objectives, verbosity="one-quality")
    with pytest.raises(ValueError, match=r"verbosity.*one-quality.*many-quality"):
        read_training_data(replace(config, objectives=named), tmp_path / "data")


def rating_rows(n, value=lambda i: float(i % 5)):
    prompts = [[{"role": "user", "content": f"Question {i}"}] for i in range(n)]
    return {
        "prompt": prompts,
        "response": [f"Answer {i}" for i in range(n)],
        "quality": [value(i) for i in range(n)],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rating_rows(3), "no objective can be learned"),
        (rating_rows(200, lambda i: 2.0), "constant"),
        (rating_rows(200) | {"prompt": [[{"role": "user", "content": "One"}]] * 200}, "one prompt"),
        (rating_rows(200) | {"prompt": [[{"role": "oracle", "content": "?"}]] * 200}, "role"),
    ],
)
def test_unusable_ratings_are_told_before_anything_is_embedded(
    rows, message, tiny_model_folder, tmp_path
):
    from panoply.armorm.training_data import read_training_data

    pq.write_table(pa.table(rows), tmp_path / "ratings.parquet")
    pq.write_table(make_world(0, num_prompts=60).pairs, tmp_path / "pairs.parquet")
    config = tiny_config(
        tmp_path,
        tiny_model_folder,
        planted=None,
        ratings=(str(tmp_path / "ratings.parquet"),),
        pairs=(str(tmp_path / "pairs.parquet"),),
    )
    with pytest.raises(ValueError, match=message):
        read_training_data(config, tmp_path / "data")
    assert not (tmp_path / "store").exists()


def test_one_process_fits_the_objectives_that_the_run_fitted(finished, tmp_path):
    from panoply.armorm.training_data import read_training_data

    config, folder, metrics = finished
    data = read_training_data(config, tmp_path / "data")
    chosen_place = next(place for place in metrics["layer_choice"] if place["chosen"])
    spec = FeatureSpec(chosen_place["depth"], chosen_place["pooling"])
    texts = store_of(folder / "store", spec.depth).features(
        "texts", data.ratings.text_N, spec.columns
    )
    pairs = {name: np.load(folder / "run/pairs" / f"{name}.npy") for name in FEATURES}
    model = fit(
        RatedResponses(
            texts.read(),
            data.ratings.labels_NO,
            data.ratings.length_N,
            data.ratings.split.key_N.tolist(),
        ),
        ComparedResponses(
            *pairs.values(),
            data.pairs.chosen_length_P,
            data.pairs.rejected_length_P,
            data.pairs.split.key_N.tolist(),
        ),
        data.ratings.objectives,
        objectives=config.objectives,
        gate=config.gate,
        seed=config.seed,
    )
    saved, num_rated = load_file(folder / "run/model/model.safetensors"), len(model.objectives)
    for name in ("weight", "bias", "unit", "penalty", "center", "length_weight", "length_bias"):
        expected = saved[f"head.{name}"]
        if name in ("weight", "bias", "unit", "penalty", "center"):
            expected = expected[:num_rated]  # this run has preference objectives behind them
        fitted = model.head.get_buffer(name).numpy()
        assert np.allclose(fitted, expected, rtol=1e-4, atol=1e-6), name


FEATURES = ("chosen", "rejected", "gate")


def store_of(root, depth):
    """The store of a run's features at one depth."""
    for file in root.glob("*/key.json"):
        key = json.loads(file.read_text())
        if key.pop("depths") == [depth]:
            del key["version"]
            return FeatureStore(str(root), {**key, "depths": [depth]})
    raise AssertionError(f"no features at depth {depth}")
