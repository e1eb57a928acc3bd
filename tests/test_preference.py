"""Preference training as users run it: on Ray, through failures, to a model that others load."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from actors.training_loop import DONE
from actors.untrained import SCORERS, UNTRAINED
from panoply.config.preference import DPO, LossConfig, Mixed, More
from panoply.hub.artefact.load import load_reward_model
from panoply.report.progress import RunLogger
from panoply.report.results.pairs import RAW
from tests.builders.preference_runs import small_config, write_pairs
from workflows.cluster.preference_results import LENGTH, MAIN, PLAIN
from workflows.preference import run_preference

pytestmark = pytest.mark.ray

MORE = More()


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("preference")
    # MLflow leaves the address of an earlier test's database in the environment.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    schedule = {"num_epochs": 40, "checkpoint_every": 20, "eval_every": 50, "lr": 3e-4}
    yield small_config(
        tiny_model_folder,
        write_pairs(folder, (60, 60)),
        schedule=schedule,
        weighting=MORE,
        out=str(folder / "alone"),
        store=str(folder / "store"),
    )
    monkeypatch.undo()


@pytest.fixture(scope="module")
def alone(base):
    """The run inside this process."""
    return run_preference(base, RunLogger())


def margins(out, name=MAIN):
    return np.load(Path(out) / "train" / name / "margins.npy")


def test_a_run_leaves_a_model_that_scores_as_it_was_measured(base, alone):
    out = Path(base.out)
    assert alone["artefact"]["round_trip_drift"] < 1e-3
    model = load_reward_model(out / "model")
    assert model.manifest.sources == ("source0", "source1")
    assert model.manifest.temperature == pytest.approx(alone["artefact"]["temperature"])
    prompt = [{"role": "user", "content": "say 0 7 cloud"}]
    yes, no = model.score(prompt, ["apple brick cloud!", "apple brick cloud."])
    assert yes != no


def test_more_stands_beside_plain_mixing_raw_and_with_a_temperature(base, alone):
    assert set(alone["pairs"]) == {MAIN, MAIN + RAW, PLAIN, PLAIN + RAW, LENGTH, *SCORERS}
    for found in alone["pairs"].values():
        assert set(found["per_source"]) == {"source0", "source1"}
        assert {"log_loss", "ece", "ece_floor"} <= found.keys()
    history = json.loads((Path(base.out) / "history.json").read_text())
    assert len(history[MAIN]) == len(history[PLAIN])
    for name in ("report.html", "training.png", "source_weights.png", "reliability.png"):
        assert (Path(base.out) / name).stat().st_size > 1000


def test_the_model_before_training_stands_beside_the_trained_one(base, alone):
    for name in SCORERS:
        assert alone["pairs"][name]["n"] == alone["pairs"][MAIN]["n"] > 0
        assert set(alone["pairs"][name]["per_source"]) == {"source0", "source1"}
        assert alone["comparisons"][f"{MAIN} - {name}"]["value"] is not None
    assert not (Path(base.out) / "train" / PLAIN / "untrained.npz").exists()
    page = (Path(base.out) / "report.html").read_text()
    assert "log probability per token" in page
    assert "MORE -<wbr> untrained" in page


def test_each_step_is_in_mlflow(base, alone):
    out = Path(base.out)
    client = mlflow.MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}")
    run = client.get_run((out / "mlflow_run").read_text())
    run_preference(base, RunLogger())  # the same command again logs no step twice
    logged = client.get_metric_history(run.info.run_id, "train/loss")
    assert len(logged) == alone["training"][MAIN]["num_steps"]
    assert run.data.params["weighting.kind"] == "more"


def test_the_same_folder_goes_on_and_refuses_another_configuration(base, alone):
    before = (Path(base.out) / "model" / "model.safetensors").stat().st_mtime_ns
    again = run_preference(base, RunLogger())
    assert json.dumps(again["pairs"]) == json.dumps(alone["pairs"])  # NaN equals NaN in text
    assert (Path(base.out) / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other settings \(seed: "):
        run_preference(replace(base, seed=3), RunLogger())


def test_a_worker_that_is_killed_in_the_middle_changes_nothing(base, alone, cluster):
    config = replace(base, out=base.out + "-killed", num_workers=2)
    folder = Path(config.out) / "train" / MAIN
    killed = []

    def kill():
        while not (found := sorted(folder.glob("step-*"))):
            time.sleep(0.05)
        time.sleep(0.3)
        assert found
        killed.append(kill_a_worker())

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run_preference(config, RunLogger())
    thread.join(timeout=1)
    assert killed == [True]
    for name in (MAIN, PLAIN):
        ours, theirs = margins(config.out, name), margins(base.out, name)
        assert np.nanmax(np.abs(ours - theirs)) < 1e-3 * np.nanstd(theirs)


def kill_a_worker():
    """Kills a process in which Ray Train trains; returns whether there was one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return True
    return False


def test_a_run_that_diverges_stops_with_the_batch_and_a_way_out(base, tmp_path):
    schedule = replace(base.schedule, lr=1e30, head_lr=1e30)
    config = replace(base, out=str(tmp_path / "bad"), schedule=schedule)
    with pytest.raises(
        RuntimeError, match=r"training stopped before.*nonfinite.*lower `schedule.lr`"
    ):
        run_preference(config, RunLogger())
    assert list((tmp_path / "bad" / "train" / MAIN).glob("nonfinite-*.json"))
    assert not (tmp_path / "bad" / "model").exists()


def test_dpo_as_a_reward_model_is_measured_and_leaves_no_classifier(base, tmp_path):
    config = replace(
        base,
        out=str(tmp_path / "dpo"),
        weighting=Mixed(),
        schedule=replace(base.schedule, num_epochs=2),
        loss=LossConfig(policy=DPO(alpha=1.0), reward=0.0),
    )
    metrics = run_preference(config, RunLogger())
    # No head is trained, so that none stands before training either.
    assert set(metrics["pairs"]) == {MAIN, MAIN + RAW, LENGTH, *SCORERS} - {UNTRAINED}
    assert not (tmp_path / "dpo" / "model").exists()


def test_an_ensemble_is_saved_with_its_members(base, tmp_path):
    config = replace(
        base,
        out=str(tmp_path / "ensemble"),
        weighting=Mixed(),
        schedule=replace(base.schedule, num_epochs=2),
        num_heads=3,
    )
    metrics = run_preference(config, RunLogger())
    assert metrics["artefact"]["round_trip_drift"] < 1e-3
    model = load_reward_model(tmp_path / "ensemble" / "model")
    prompt = [{"role": "user", "content": "say 0 7 cloud"}]
    tree = model.backbone.renderer.render(prompt, ["apple!", "brick."]).tree
    members = model.members_of_trees([tree])
    assert members.shape == (2, 3)
    assert float(members.std(1).min()) > 0
    assert torch.allclose(
        members.mean(1).diff(), model.score_trees([tree]).diff(), rtol=1e-4, atol=1e-5
    )


def test_results_appear_when_they_are_whole(base, alone):
    assert not list(Path(base.out).rglob("*.part*"))
    assert (Path(base.out) / "train" / MAIN / DONE).exists()
