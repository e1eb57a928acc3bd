"""TensorBoard, Weights & Biases and Trackio get the steps and the results of a run."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from panoply.config.tracked import TrackedRun
from panoply.report.progress import RunLogger
from tests.builders.ray_head import ROOT
from workflows.cluster.mlflow_calls import TrackerError
from workflows.cluster.tracking import open_trackers

pytestmark = pytest.mark.slow

STEPS = [{"step": i, "loss": 1 / (1 + i), "lr": 1e-4, "source_weights": [1.0]} for i in range(4)]
RUN = """
import json, sys
from pathlib import Path
from panoply.config.tracked import TrackedRun
from panoply.report.progress import RunLogger, Terminal
from workflows.cluster.tracking import open_trackers
out, tracker, steps = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
trackers = open_trackers(TrackedRun(experiment="race", report_to=(tracker,)), out)
logger = RunLogger(Terminal())
with trackers.run({"seed": 1}, {}, logger, steps="score"):
    logger.log_steps("score", steps)
    (out / "metrics.json").write_text('{"pairs": {"score": {"accuracy": 0.75}}}')
"""


def run_in_a_process(out, tracker, **settings):
    """Runs in a process of its own: the libraries keep a run for each process."""
    out.mkdir(exist_ok=True)
    words = [sys.executable, "-c", RUN, str(out), tracker, json.dumps(STEPS)]
    env = os.environ | settings
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tensorboard_has_the_steps_and_the_headline(tmp_path):
    trackers = open_trackers(TrackedRun(report_to=("tensorboard",)), tmp_path)
    logger = RunLogger()
    with trackers.run({"seed": 1}, {}, logger, steps="score"):
        logger.log_steps("score", STEPS)
        logger.log_steps("mixed", STEPS[:2])
        (tmp_path / "metrics.json").write_text('{"pairs": {"score": {"accuracy": 0.75}}}')
    assert not (tmp_path / "mlflow_run").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")]
    assert steps == [(0, 1.0), (1, 0.5), (2, 0.333), (3, 0.25)]
    assert len(events.Scalars("train-mixed/loss")) == 2
    assert events.Scalars("pairs/score/accuracy")[0].value == 0.75


def test_wandb_keeps_a_run_offline(tmp_path):
    out = tmp_path / "run"
    line = run_in_a_process(out, "wandb", WANDB_MODE="offline")
    assert "tracked: wandb run" in line
    (folder,) = (out / "wandb").glob("offline-run-*")
    assert (out / "wandb_run").read_text() in folder.name
    content = b"".join(path.read_bytes() for path in folder.glob("*.wandb"))
    assert b"train/loss" in content
    assert b"pairs/score/accuracy" in content


def test_trackio_keeps_the_steps_of_a_run(tmp_path):
    run_in_a_process(tmp_path / "run", "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    show = [sys.executable, "-m", "trackio.cli", "get", "metric", "--project", "race"]
    show += ["--run", "run", "--metric", "train/loss", "--json"]
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    shown = subprocess.run(show, env=env, capture_output=True, text=True, timeout=300)
    assert [value["value"] for value in json.loads(shown.stdout)["values"]] == [
        row["loss"] for row in STEPS
    ]


def test_a_tracker_that_is_not_installed_is_told_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackerError, match="pip install wandb"):
        open_trackers(TrackedRun(report_to=("wandb",)), tmp_path)


@pytest.mark.parametrize("names", [(), ("none", "wandb"), ("clearml",)])
def test_trackers_that_do_not_fit_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="`report_to` must be some of"):
        open_trackers(TrackedRun(report_to=names), tmp_path)


def test_a_run_that_reports_to_none_leaves_no_entry_in_mlflow(tmp_path):
    with open_trackers(TrackedRun(report_to=("none",)), tmp_path).run({}, {}, RunLogger()):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "tracking.json"}
