"""Every model on every source: who counts as trained on it, what counts, how it is shown."""

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console
from transformers import AutoTokenizer

from panoply.config.evaluate import CrossEvalConfig, EvaluateConfig
from panoply.data.schema import split_key
from panoply.data.tables import PairTable, Split
from panoply.files import write_json
from panoply.hub.artefact.manifest import read_manifest
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.report.progress import RunLogger
from panoply.report.results.cross_eval import matrix
from panoply.report.terminal import print_sections
from panoply.synthetic.planted import make_world
from tests.builders.models import make_run, save_small, small_decoder
from workflows.cluster.evaluated import EvaluatedScorer, scorer_labels
from workflows.cross_eval import (
    ENSEMBLE,
    ScoredRow,
    ensemble,
    report_row,
    run_cross_eval,
    trained_sources,
    unseen_rows,
)
from workflows.evaluate import run_evaluate


def example_pairs(num=400, seed=0):
    rng = np.random.default_rng(seed)
    names = np.array([f"text {i}" for i in range(num)], object)
    source = np.array([("east", "west", "north")[i % 3] for i in range(num)], object)
    return PairTable(
        prompt_P=names,
        chosen_P=names,
        rejected_P=names,
        source_P=source,
        domain_P=source,
        chosen_length_P=rng.integers(5, 500, num),
        rejected_length_P=rng.integers(5, 500, num),
        split=Split(names, np.full(num, "test", object), np.zeros(num, np.int64)),
    )


def test_means_in_and_out_of_domain_are_those_of_their_sources():
    pairs, rng = example_pairs(), np.random.default_rng(1)
    margin = rng.normal(0.4, 1, len(pairs.gap_P))
    rows = np.arange(40, 400)
    row = ScoredRow(frozenset({"east", "south"}), 2.0, margin)
    per_source, means = report_row(row, pairs, rows)
    assert {name: found["trained_on"] for name, found in per_source.items()} == {
        "east": True,
        "north": False,
        "west": False,
    }
    east = rows[pairs.source_P[rows] == "east"]
    assert per_source["east"]["accuracy"] == (margin[east] > 0).mean()
    loss = np.mean(np.log1p(np.exp(-margin[east] / 2.0)))
    assert per_source["east"]["log_loss"] == pytest.approx(loss)
    key = "accuracy_length_balanced"
    outside = [per_source[name][key] for name in ("north", "west")]
    assert means["in_domain"][key] == per_source["east"][key]
    assert means["out_of_domain"][key] == pytest.approx(np.mean(outside))
    assert means["all"]["num_sources"] == 3
    low, high = means["out_of_domain"]["ci95_length_balanced"]
    assert low < means["out_of_domain"][key] < high


def test_a_model_that_saw_no_source_has_no_mean_in_domain():
    pairs = example_pairs()
    _, means = report_row(ScoredRow(frozenset(), 1.0, np.ones(400)), pairs, np.arange(400))
    assert means["in_domain"] == {"num_sources": 0}
    assert means["out_of_domain"]["num_sources"] == 3


def test_the_ensemble_standardizes_and_neither_scale_nor_a_constant_model_moves_it():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    rows = [ScoredRow(frozenset("a"), 1.0, a), ScoredRow(frozenset("b"), 1.0, b * 1e3)]
    both = ensemble(rows, [2.0, 3e3])
    assert both.margin_P == pytest.approx((a / 2 + b / 3) / 2)
    assert both.sources == {"a", "b"}
    assert np.isnan(both.temperature)
    silent = [rows[0], ScoredRow(frozenset(), 1.0, np.zeros(50))]
    assert (np.sign(ensemble(silent, [2.0, 0.0]).margin_P) == np.sign(a)).all()
    per_source, _ = report_row(both, example_pairs(50), np.arange(50))
    assert all(np.isnan(found["log_loss"]) for found in per_source.values())
    assert all(found["n"] > 0 for found in per_source.values())


def test_only_prompts_that_no_model_has_seen_count():
    seen = {"a": np.array([True, False, False]), "b": np.array([False, False, True])}
    assert unseen_rows(seen).tolist() == [1]
    seen["c"] = np.array([False, True, False])
    with pytest.raises(ValueError, match=r"each of the 3 pairs .*\(a 1, b 1, c 1\)"):
        unseen_rows(seen)


def test_sources_trained_on_come_from_the_record_of_either_kind(tiny_model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    save_small(tmp_path / "scalar", tokenizer, sources=("north",))
    gated, _ = make_run(tmp_path, tokenizer)
    assert trained_sources(read_manifest(tmp_path / "scalar")) == {"north"}
    assert trained_sources(read_manifest(gated)) == {"editors", "east", "west"}


def test_models_are_named_by_their_runs_unless_two_share_the_name(tmp_path):
    def labels(*folders):
        for folder in folders:
            folder.mkdir(parents=True)
        return scorer_labels([EvaluatedScorer(str(f), f, None) for f in folders])

    assert labels(tmp_path / "east" / "model", tmp_path / "mean") == ["east", "mean"]
    twice = [tmp_path / "a" / "east", tmp_path / "b" / "east"]
    assert labels(*twice) == [str(folder) for folder in twice]
    fetched = EvaluatedScorer("owner/name", tmp_path / "mean", None)
    length = EvaluatedScorer("function:my.py:length", None, None)
    assert scorer_labels([fetched, length]) == ["owner/name", "function:my.py:length"]


@pytest.fixture
def models(tiny_model_folder, tmp_path):
    """Two tiny scalar models, one of them an ensemble; the first has seen a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    world = make_world(7, num_prompts=40, num_responses=3).pairs
    pq.write_table(world, tmp_path / "pairs.parquet")
    first, sources = world["prompt"][0].as_py(), sorted(set(world["source"].to_pylist()))
    save_small(
        tmp_path / "one" / "model", tokenizer, sources=(sources[0],), seen=[split_key(first)]
    )
    decoder = small_decoder(seed=5)
    save_small(tmp_path / "two", tokenizer, num_heads=3, model=decoder, sources=tuple(sources))
    return (str(tmp_path / "one" / "model"), str(tmp_path / "two")), sources


def test_a_folder_of_another_run_is_refused_with_the_fields_that_differ(models, tmp_path):
    folders, _ = models
    pairs, out = (str(tmp_path / "pairs.parquet"),), tmp_path / "out"
    crossed = CrossEvalConfig(models=folders, pairs=pairs, out=str(out))
    evaluated = EvaluateConfig(model=folders[1], pairs=pairs, out=str(out))
    for old, run, config, fields in (
        (asdict(crossed), run_evaluate, evaluated, ("model",)),
        (asdict(evaluated), run_cross_eval, crossed, ("models",)),
        ({"out": "runs/x", "gate": {"lr": 1e-3}}, run_evaluate, evaluated, ("model",)),
        (asdict(evaluated), run_evaluate, replace(evaluated, columns=("prompt=x",)), ("columns",)),
    ):
        out.mkdir(exist_ok=True)
        write_json(out / "config.json", old)
        (out / "report.html").touch()
        with pytest.raises(ValueError, match="holds a run with other settings") as error:
            run(config, RunLogger())
        assert all(field in str(error.value) for field in fields)
        assert {path.name for path in out.iterdir()} == {".lease", "config.json", "report.html"}
        assert json.loads((out / "config.json").read_text()) == json.loads(json.dumps(old))


def test_every_model_is_judged_on_every_source(cluster, models, tmp_path):
    folders, sources = models
    pairs = (str(tmp_path / "pairs.parquet"),)
    out = tmp_path / "out"
    found = run_cross_eval(
        CrossEvalConfig(models=folders, pairs=pairs, out=str(out), num_workers=1), RunLogger()
    )
    assert list(found["matrix"]) == ["one", "two", ENSEMBLE]
    assert found["num_pairs"] == 120
    assert 0 < found["num_seen"] == found["models"]["one"]["num_seen"]
    assert sum(found["sources"].values()) == 120 - found["num_seen"]
    for name, row in found["matrix"].items():
        assert list(row) == sources == list(found["sources"])
        for source, own in row.items():
            assert own["n"] == found["sources"][source]
            assert own["missing"] == 0
            assert own["trained_on"] == (name != "one" or source == sources[0])
            assert len(own["ci95_length_balanced"]) == 2
    assert found["means"]["one"]["in_domain"]["num_sources"] == 1
    assert found["means"]["two"]["out_of_domain"]["num_sources"] == 0
    assert found["models"]["one"]["temperature"] == 2.0
    written = json.loads((out / "matrix.json").read_text())
    returned = json.dumps(found["matrix"]["one"], sort_keys=True).replace("NaN", "null")
    assert json.dumps(written["matrix"]["one"], sort_keys=True) == returned
    assert written["means"][ENSEMBLE]["all"]["log_loss"] is None
    assert min(imread(out / "matrix.png").shape[:2]) > 200
    console = Console(file=io.StringIO(), width=120)
    print_sections([matrix(written)], console)
    text = console.file.getvalue()
    assert f"{found['num_seen']} of 120 pairs are left out" in text
    line = next(line for line in text.splitlines() if line.startswith("one"))
    values = [found["matrix"]["one"][source]["accuracy_length_balanced"] for source in sources]
    assert line.split()[1:] == [f"{v:.3f}{'*' if i == 0 else ''}" for i, v in enumerate(values)]


def test_one_scalar_model_is_evaluated_with_its_page_and_plots(cluster, models, tmp_path):
    (_, folder), _ = models
    out, pairs = tmp_path / "out", str(tmp_path / "pairs.parquet")
    config = EvaluateConfig(model=folder, pairs=(pairs,), out=str(out), num_workers=1)
    found = run_evaluate(config, RunLogger())
    again = run_evaluate(config, RunLogger())["pairs"]["score"]  # the same folder and settings
    assert again["accuracy"] == found["pairs"]["score"]["accuracy"]
    assert again["log_loss"] == pytest.approx(found["pairs"]["score"]["log_loss"], rel=1e-4)
    assert list(found["pairs"]) == ["score", "lower_bound"]
    assert list(found["comparisons"]) == ["lower_bound - score"]
    assert list(found["reliability"]) == ["score", "lower_bound"]
    assert found["pairs"]["score"]["temperature"] == 2.0
    assert "gate" not in found
    names = {path.name for path in out.iterdir()}
    assert {"metrics.json", "report.html", "reliability.png", "baselines.png"} <= names
    page = (out / "report.html").read_text()
    assert "of the score; 95 %" in page
    assert "gate" not in page.split("</style>")[1].split("<details>")[0]
    # What the workers scored is what the model says here.
    model, margins = load_scalar_model(tmp_path / "two"), []
    for row in pq.read_table(pairs).to_pylist():
        chosen, rejected = model.score(row["prompt"], [row["chosen"], row["rejected"]])
        margins.append(float(chosen - rejected))
    loss = np.mean(np.log1p(np.exp(-np.array(margins) / 2.0)))
    assert found["pairs"]["score"]["log_loss"] == pytest.approx(loss, rel=1e-4)
    assert found["pairs"]["score"]["accuracy"] == np.mean(np.array(margins) > 0)
