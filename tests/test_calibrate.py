"""Fitting of a composite by its command: numbers in its file, and what each part adds."""

import asyncio
import json
import shutil
import sys

import numpy as np
import pytest
from mlflow import MlflowClient

from panoply.config.calibrate import CalibrateConfig
from panoply.config.serve import ServedModelConfig
from panoply.report.headline import MOST_HEADLINES
from panoply.report.progress import RunLogger
from panoply.report.results.calibrate import calibrated
from panoply.scorers.composite.opening import read_composite
from panoply.scorers.where import open_scorer
from panoply.wire.request import Chat
from workflows.calibrate import run_calibrate

FUNCTIONS = """
def part(name):
    return lambda response: float(dict(x.split("=") for x in response.split())[name])

good, noise, judge = part("good"), part("noise"), part("judge")
"""
PARTS = """parts:
  good: {where: "function:rewards.py:good"}
  noise: {where: "function:rewards.py:noise"}
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of 400 prompts: `good` tells, the more so the larger its margin; `noise` does not."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(400):
            for _ in range(2):
                quality = rng.normal(size=2)
                order = np.argsort(-quality)
                good = 10 + 2 * (quality + rng.normal(scale=0.7, size=2))
                verdict = quality[order[0]] - quality[order[1]] > 0.3 or rng.random() < 0.6
                judge = [1.0, 0.0] if verdict else [0.0, 1.0]
                texts = [
                    f"good={good[i]:.4f} noise={rng.normal():.4f} judge={judge[k]}"
                    for k, i in enumerate(order)
                ]
                prompt = [{"role": "user", "content": f"Question {number}?"}]
                row = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
                file.write(json.dumps(row) + "\n")
    return path


def calibrate(folder, pairs, text, **settings):
    (folder / "rewards.py").write_text(FUNCTIONS)
    file = folder / "c.yaml"
    file.write_text(text)
    config = CalibrateConfig(
        composite=str(file),
        pairs=(str(pairs),),
        **{"fit_on_train": True, "report_to": ("none",), "out": str(folder / "out")} | settings,
    )
    return run_calibrate(config, RunLogger())["calibrated"], file


def test_a_sum_is_fitted_into_its_file_and_then_scores_as_it_was_reported(tmp_path, pairs):
    result, file = calibrate(tmp_path, pairs, f"# Mine.\n{PARTS}rule: {{kind: sum}}\n")
    text = file.read_text()
    assert text.startswith(f"# Mine.\n{PARTS}rule: {{kind: sum}}\n")
    fit = read_composite(file).fitted
    assert fit is not None
    good, noise = fit.parts["good"], fit.parts["noise"]
    assert good.mean == pytest.approx(10, abs=0.3)
    assert good.deviation == pytest.approx(2 * np.hypot(1, 0.7), rel=0.1)
    assert noise.weight < 0.15 * good.weight
    # The weights are of a Bradley-Terry model: the sum needs no other temperature.
    assert fit.temperature == pytest.approx(1, rel=0.6)
    assert fit.num_pairs == result["num_pairs"]["fitted"] < 800
    rows = result["rows"]
    assert rows["composite"]["accuracy"] > rows["noise"]["accuracy"] + 0.1
    assert {"best single part: good", "mean", "median"} < set(rows)
    item = Chat(({"role": "user", "content": "?"},), ("good=12 noise=0", "good=9 noise=1"))
    scorer = open_scorer(ServedModelConfig(name="m", where=f"combine:{file}"))
    first, second = asyncio.run(scorer.score([item]))[0]
    expected = 3 * good.weight / good.deviation - noise.weight / noise.deviation
    assert first.score - second.score == pytest.approx(expected)
    section = calibrated(result)
    assert section.blocks[0].rows[0].name == "composite"
    assert any("good" in block for block in section.blocks[1:])


def test_a_hierarchys_threshold_is_fitted_and_its_plain_rivals_stand_beside_it(tmp_path, pairs):
    text = PARTS + "rule: {kind: hierarchy, first: good}\n"
    result, file = calibrate(tmp_path, pairs, text, write=str(tmp_path / "fitted.yaml"))
    assert file.read_text() == text
    fit = read_composite(tmp_path / "fitted.yaml").fitted
    assert fit is not None
    assert fit.threshold is not None
    rows = result["rows"]
    assert {"first part only", "weighted sum", "best single part: good"} < set(rows)


def test_an_escalation_is_fitted_on_verdicts_about_pairs(tmp_path, pairs):
    text = (
        PARTS.replace("noise", "judge") + "rule: {kind: escalation, first: good, second: judge}\n"
    )
    result, file = calibrate(tmp_path, pairs, text)
    fit = read_composite(file).fitted
    assert fit is not None
    assert fit.escalation is not None
    assert fit.escalation.verdict > 0
    rows = result["rows"]
    assert {"judge about every pair", "random calls, as many"} < set(rows)
    assert rows["composite"]["accuracy"] > rows["good"]["accuracy"]


def test_margins_that_tell_nothing_are_said_to_and_the_file_is_refused_from_then_on(
    tmp_path, pairs
):
    text = "parts:\n  noise: {where: 'function:rewards.py:noise'}\n"
    text += "  judge: {where: 'function:rewards.py:judge'}\n"
    text += "rule: {kind: escalation, first: noise, second: judge, asks: responses}\n"
    result, file = calibrate(tmp_path, pairs, text)
    assert any("do not tell where 'judge' helps" in finding for finding in result["findings"])
    with pytest.raises(ValueError, match=r"c\.yaml:4: `rule.first`: .*Name one of the two alone"):
        read_composite(file)


def test_a_part_without_deviation_and_pairs_without_a_test_part_are_refused(tmp_path, pairs):
    text = (
        PARTS.replace("rewards.py:noise", "panoply.serve.verifiers:exact") + "rule: {kind: sum}\n"
    )
    with pytest.raises(ValueError, match="exact"):
        calibrate(tmp_path, pairs, text)
    (tmp_path / "few.jsonl").write_text(pairs.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"give more `--pairs`"):
        calibrate(
            tmp_path,
            tmp_path / "few.jsonl",
            PARTS + "rule: {kind: sum}\n",
            out=str(tmp_path / "few"),
        )


def test_a_copy_is_written_beside_the_file_alone(tmp_path, pairs):
    with pytest.raises(ValueError, match=r"`write` must be a file in the folder of"):
        calibrate(tmp_path, pairs, PARTS + "rule: {kind: mean}\n", write="/elsewhere.yaml")


def test_a_gate_that_all_pass_is_calibrated(tmp_path, pairs):
    text = PARTS.replace("rewards.py:noise", "panoply.serve.verifiers:lines")
    result, file = calibrate(
        tmp_path, pairs, text + "rule: {kind: gate, first: noise, above: 0, otherwise: -5}\n"
    )
    assert result["rows"]["composite"]["accuracy"] > 0.6
    assert read_composite(file).fitted


def test_the_command_prints_what_each_part_adds_and_what_to_do_next(
    tmp_path, pairs, monkeypatch, capsys
):
    from jobs import calibrate as job

    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    file = tmp_path / "c.yaml"
    file.write_text(PARTS + "rule: {kind: mean}\n")
    words = [str(file), "--pairs", str(pairs), "--out", str(tmp_path / "out"), "--fit-on-train"]
    monkeypatch.setattr(sys, "argv", ["calibrate", *words, "--report-to", "none"])
    job.main()
    printed = capsys.readouterr().out
    assert "best single part: good" in printed
    assert f"combine:{file}" in printed.replace("\n", "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Composite and parts" in page
    assert "best single part: good" in page


def test_a_calibration_is_a_tracked_run_with_the_numbers_of_its_parts(
    tmp_path, pairs, monkeypatch, empty_database
):
    shutil.copy(empty_database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    result, _ = calibrate(
        tmp_path, pairs, PARTS + "rule: {kind: mean}\n", report_to=("mlflow",), experiment="fits"
    )
    failing = PARTS.replace("rewards.py:noise", "panoply.serve.verifiers:exact")
    (tmp_path / "failing").mkdir()
    with pytest.raises(ValueError, match="exact"):
        calibrate(
            tmp_path / "failing",
            pairs,
            failing + "rule: {kind: sum}\n",
            report_to=("mlflow",),
            experiment="fits",
        )
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fits")
    runs = client.search_runs([experiment.experiment_id])
    by_status = {run.info.status: run for run in runs}
    assert set(by_status) == {"FINISHED", "FAILED"}
    finished = by_status["FINISHED"].data
    assert finished.params["composite"] == str(tmp_path / "c.yaml")
    accuracy = finished.metrics["calibrated/rows/composite/accuracy"]
    assert accuracy == result["rows"]["composite"]["accuracy"]
    assert len(finished.metrics) <= MOST_HEADLINES
    files = {file.path for file in client.list_artifacts(by_status["FINISHED"].info.run_id)}
    assert {"metrics.json", "report.html"} <= files
