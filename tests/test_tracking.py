"""MLflow takes a run, is spoken to before anything is trained, and loses no finished run."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from panoply.config import as_dict
from panoply.config.doctor import DoctorConfig
from panoply.config.laser import ArmsConfig, LaserConfig
from panoply.config.merge import MergeConfig
from panoply.config.policy import PolicyServerConfig
from panoply.config.tracked import TrackedRun
from panoply.hub.artefact.load import load_reward_model
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from tests.builders.mlflow_server import Door, mlflow_server
from tests.builders.ports import free_ports
from tests.builders.preference_runs import small_config, write_pairs
from tests.builders.ray_head import ROOT
from workflows.cluster.mlflow_calls import TrackerError
from workflows.cluster.registered import registered_folder
from workflows.cluster.tracking import open_trackers, track
from workflows.doctor import run_doctor
from workflows.merge import run_merge
from workflows.preference import run_preference

pytestmark = pytest.mark.ray

METRICS = {"pairs": {"gate": {"accuracy": 0.5, "undefined": None}}}
HISTORY = {"score": [{"step": i, "loss": 1 / (1 + i), "weights": [1.0]} for i in range(4)]}
TRIALS = {
    "trials": [
        {"search": "tpe", "number": i, "state": "finished", "point": {"momentum": 0.1 * i}}
        | {"select_loss": 0.7, "losses": [0.8, 0.7]}
        for i in range(3)
    ]
}
RUN = """
import sys
from pathlib import Path
from panoply.report.progress import RunLogger
from panoply.config.doctor import DoctorConfig
from panoply.config.tracked import TrackedRun
from workflows.cluster.tracking import open_trackers
trackers = open_trackers(TrackedRun(experiment="race"), Path(sys.argv[1]))
with trackers.run({"seed": 1}, {}, RunLogger(), model="armorm"):
    pass
"""


class Ear(RunLogger):
    """Keeps the lines that a run prints."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def info(self, text):
        """Keeps a line."""
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, empty_database, tmp_path):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(empty_database, tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
def door(server, monkeypatch):
    """A server that can be shut, as the environment names it; one retry, after half a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    before = Door(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", before.uri)
    yield before
    before.shut()


def finished_run(folder):
    """A folder as a workflow leaves it."""
    (folder / "model").mkdir(parents=True)
    for name in ("config.json", "model/panoply.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "history.json").write_text(json.dumps(HISTORY))
    return folder


def run(out, ear=None, config=None, experiment="race"):
    """A run that has only to be tracked."""
    ear = ear or Ear()
    trackers = open_trackers(TrackedRun(experiment=experiment), out)
    return trackers.run(config or {"seed": 1}, {}, ear, model="armorm", steps="score")


def assert_tracked(client, out):
    """All of a run is in MLflow, once; returns the MLflow run."""
    run_id = (out / "mlflow_run").read_text()
    logged = client.get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["pairs/gate/accuracy"] == 0.5
    assert logged.data.params["seed"] == "1"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [0, 1, 2, 3]
    files = {file.path for file in client.list_artifacts(run_id)}
    assert files == {"config.json", "history.json", "metrics.json", "run.json", "tables"}
    assert len(client.search_model_versions(f"run_id = '{run_id}'")) == 1
    return logged


def at_once(code, outs, env):
    each = [subprocess.Popen([sys.executable, "-c", code, str(out)], env=env) for out in outs]
    assert [process.wait(300) for process in each] == [0] * len(outs)


def test_two_runs_at_once_share_one_experiment_and_one_registered_model(server, tmp_path):
    outs = [finished_run(tmp_path / name) for name in ("a", "b")]
    env = os.environ | {"MLFLOW_TRACKING_URI": server}
    at_once(RUN, outs, env)
    first, second = [(out / "mlflow_run").read_text() for out in outs]
    client = MlflowClient(server)
    runs = [client.get_run(name) for name in (first, second)]
    assert len({run.info.experiment_id for run in runs}) == 1
    assert [run.data.metrics["pairs/gate/accuracy"] for run in runs] == [0.5, 0.5]
    versions = client.search_model_versions("name = 'armorm'")
    assert {version.run_id for version in versions} == {first, second}
    at_once(RUN, outs[:1], env)
    assert (outs[0] / "mlflow_run").read_text() == first
    assert len(client.search_model_versions("name = 'armorm'")) == 2
    files = {file.path for file in client.list_artifacts(first)}
    assert files == {"config.json", "history.json", "metrics.json", "run.json", "tables"}


def test_runs_that_start_at_once_make_one_database(tmp_path):
    (tmp_path / "runs").mkdir()
    together = """
import sys, time
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from panoply.config.doctor import DoctorConfig
from panoply.config.tracked import TrackedRun
from workflows.cluster.tracking import open_trackers
out = Path(sys.argv[1])
out.mkdir()
while len(list(out.parent.iterdir())) < 2:
    time.sleep(0.01)
open_trackers(TrackedRun(experiment="race"), out)
"""
    at_once(together, [tmp_path / "runs" / name for name in "ab"], dict(os.environ))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    assert client.get_experiment_by_name("race").lifecycle_stage == "active"


def test_a_run_goes_on_with_its_mlflow_run_and_logs_nothing_twice(tmp_path):
    out = finished_run(tmp_path / "run")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with run(out):
        pass
    first = assert_tracked(client, out)
    assert first.info.run_name == "run"
    assert first.data.tags["mlflow.source.type"] == "LOCAL"
    with run(out, config={"seed": 1, "later": "a" * 9000}):
        assert client.get_run(first.info.run_id).info.status == "RUNNING"
    with run(out, config={"seed": 2}):
        pass
    again = assert_tracked(client, out)
    assert again.info.run_id == first.info.run_id
    assert again.data.tags["later.seed"] == "2"
    assert len(client.get_metric_history(first.info.run_id, "pairs/gate/accuracy")) == 1
    changed = {"pairs": {"gate": {"accuracy": 0.75}}}
    (out / "metrics.json").write_text(json.dumps(changed))
    track(out)
    run_id = first.info.run_id
    assert client.get_run(run_id).data.metrics["pairs/gate/accuracy"] == 0.75


def test_names_and_numbers_of_all_kinds_are_taken(tmp_path):
    out = finished_run(tmp_path / "run")
    names = ["a:b", "x//y", "../up", "/etc/passwd", "trailing/", "", "é" * 300, "owner/name"]
    many = {f"m{i}": i for i in range(30)}
    (out / "metrics.json").write_text(json.dumps(many | dict.fromkeys(names, 1.0)))
    rows = [{"step": i} | {f"share/{name}": i for name in names} for i in range(40)]
    (out / "history.json").write_text(json.dumps({"score": rows}))
    ear = Ear()
    with run(out, ear, config={f"p{i}": i for i in range(120)} | {"k" * 300: "v"}):
        pass
    (line,) = ear.lines
    assert line.startswith("tracked: MLflow run ")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    data = client.get_run((out / "mlflow_run").read_text()).data
    assert many.items() <= data.metrics.items()
    assert data.metrics["owner/name"] == data.metrics["x__y"] == data.metrics["a_b"] == 1
    assert len(data.params) == 121


def test_a_reward_model_is_scored_by_mlflow_from_the_files_of_the_run(
    tmp_path, small_models, monkeypatch
):
    out = finished_run(tmp_path / "run")
    shutil.rmtree(out / "model")
    shutil.copytree(small_models["scalar"], out / "model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with run(out):
        pass
    assert_tracked(MlflowClient(), out)
    model = mlflow.pyfunc.load_model("models:/armorm/1")
    prompt, responses = "How do I boil an egg?", ["Ten minutes.", "No."]
    turns = [{"role": "user", "content": prompt}]
    rows = pd.DataFrame({"prompt": [prompt, turns], "response": responses})
    expected = load_reward_model(out / "model").score(turns, responses)
    assert model.predict(rows)["score"].to_numpy() == pytest.approx(expected)
    assert model.metadata.signature.inputs.input_names() == ["prompt", "response"]
    assert list(model.input_example.columns) == ["prompt", "response"]
    served = Path(registered_folder("models:/armorm/1"))
    weights = "model.safetensors"
    assert (served / weights).samefile(out / "model" / weights)


def test_the_data_and_the_tables_of_a_run_are_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    out, pairs = finished_run(tmp_path / "run"), tmp_path / "pairs.jsonl"
    pairs.write_text("{}")
    files = [str(pairs), "owner/name", "s3://bucket/more.parquet"]
    data = {"pairs": {"id": "a" * 64, "rows": 7, "files": files}}
    with open_trackers(TrackedRun(experiment="race"), out).run({}, {}, Ear(), data=data):
        pass
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = (out / "mlflow_run").read_text()
    inputs = [entry.dataset for entry in client.get_run(run_id).inputs.dataset_inputs]
    assert {dataset.name for dataset in inputs} == {
        "pairs: pairs.jsonl",
        "pairs: name",
        "pairs: more.parquet",
    }
    assert {dataset.source_type for dataset in inputs} == {"local", "hugging_face", "s3"}
    assert {dataset.digest for dataset in inputs} == {"a" * 36}
    assert all(json.loads(dataset.profile) == {"rows": 7} for dataset in inputs)
    experiment_id = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment_id, "tables/scorers-1.json", [run_id])
    assert table["scorer"].tolist() == ["gate"]


def test_a_merge_and_an_examination_are_runs_with_tables_numbers_and_the_model(
    small_models, tmp_path
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder, client = str(small_models["scalar"]), MlflowClient(uri)
    merge = MergeConfig(models=(folder, folder), out=str(tmp_path / "mean"))
    run_merge(merge, RunLogger())
    doctor = DoctorConfig(model=folder, out=str(tmp_path / "doctor"))
    findings = run_doctor(doctor, RunLogger())
    columns_of_models = {"model", "weight", "head", "distance", "sources", "pairs"}
    for config, table, columns, number in (
        (merge, "merged-1", columns_of_models, "merged/share"),
        (doctor, "checks-1", {"check", "finding", "verdict", "what to do"}, "num_failed"),
    ):
        run = client.get_run((Path(config.out) / "mlflow_run").read_text())
        assert run.info.status == "FINISHED"
        assert number in run.data.metrics
        assert client.get_experiment(run.info.experiment_id).name == config.experiment
        place = client.download_artifacts(run.info.run_id, f"tables/{table}.json")
        content = json.loads(Path(place).read_text())
        assert set(content["columns"]) == columns
        assert (Path(config.out) / "report.html").is_file()
    assert len(content["data"]) == len(findings)
    (version,) = client.search_model_versions("name = 'merge'")
    assert version.run_id == (tmp_path / "mean" / "mlflow_run").read_text()


class Breaker(Ear):
    """Breaks MLflow's store of artifacts once a run has begun."""

    def __init__(self, store):
        super().__init__()
        self.store = store

    def sending_steps_to(self, sink):
        """Breaks the store before anything is computed."""
        shutil.rmtree(self.store)
        self.store.write_text("no folder")
        return super().sending_steps_to(sink)


@pytest.mark.parametrize("job", ["merge", "doctor"])
def test_a_merge_and_an_examination_are_whole_where_mlflow_breaks(small_models, tmp_path, job):
    model, out = str(small_models["scalar"]), str(tmp_path / "out")
    ear = Breaker(tmp_path / "mlartifacts")
    if job == "merge":
        assert run_merge(MergeConfig(models=(model, model), out=out), ear)["num_models"] == 2
        assert load_reward_model(tmp_path / "out" / "model").manifest.temperature == 1.0
    else:
        assert run_doctor(DoctorConfig(model=model, out=out), ear)
    assert (tmp_path / "out" / "report.html").is_file()
    assert "not tracked: " in ear.lines[-1]
    assert ear.lines[-1].endswith(f"Track them later: python -m jobs.track {out}")


def test_steps_are_in_mlflow_while_a_run_trains_and_a_lost_server_does_not_stop_it(tmp_path):
    out, ear = finished_run(tmp_path / "run"), Ear()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with run(out, ear):
        run_id = (out / "mlflow_run").read_text()
        ear.log_steps("score", HISTORY["score"][:2])
        ear.log_steps("mixed", HISTORY["score"][:1])
        assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [0, 1]
        assert len(client.get_metric_history(run_id, "train-mixed/loss")) == 1
        client.delete_run(run_id)
        ear.log_steps("score", HISTORY["score"][2:])
        ear.log_steps("score", HISTORY["score"][2:])
        client.restore_run(run_id)
    assert ["steps are tracked at the end" in line for line in ear.lines] == [True, False]
    assert_tracked(client, out)


def test_neither_an_active_run_nor_the_environment_redirects_a_run(tmp_path, monkeypatch):
    out, uri = finished_run(tmp_path / "runs" / "run"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with mlflow.start_run() as active:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            monkeypatch.setenv(name, "0" * 32)
        with run(out):
            pass
        assert mlflow.active_run().info.run_id == active.info.run_id
        assert os.environ["MLFLOW_RUN_ID"] == "0" * 32
    client = MlflowClient(uri)
    assert not client.get_run(active.info.run_id).data.metrics
    logged = assert_tracked(client, out)
    assert client.get_experiment(logged.info.experiment_id).name == "race"


def test_an_interrupted_run_is_not_shown_as_running(tmp_path):
    out = finished_run(tmp_path / "run")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for error, status in ((RuntimeError("loss"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        ear = Ear()
        with pytest.raises(type(error)), run(out, ear):
            raise error
        assert client.get_run((out / "mlflow_run").read_text()).info.status == status
        assert ear.lines == []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's, where a test has started it
    try:
        with pytest.raises(SystemExit, match="143"), run(out):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert client.get_run((out / "mlflow_run").read_text()).info.status == "KILLED"
    with run(out):
        pass
    assert_tracked(client, out)


def broken_databases(folder):
    """By kind, a database that MLflow cannot use, and what is said of it."""
    (folder / "text.db").write_text("no database" * 100)
    open_trackers(TrackedRun(experiment="race"), folder / "run")
    shutil.copy(folder / "mlflow.db", folder / "newer.db")
    with closing(sqlite3.connect(folder / "newer.db")) as newer:
        newer.execute("update alembic_version set version_num = 'ffff00000000'")
        newer.commit()
    return {
        f"sqlite:///{folder / 'text.db'}": "not a database",
        f"sqlite:///{folder / 'newer.db'}": "found version ffff00000000",
        f"sqlite:///{folder}": "unable to open database file",
        str(folder / "mlruns"): "maintenance mode",
        "carrier-pigeon://x": "unsupported URI",
        "postgresql://me:secret@localhost/runs": "No module named",
    }


def test_what_is_wrong_with_mlflow_is_a_sentence_before_anything_is_trained(tmp_path, monkeypatch):
    for uri, reason in broken_databases(tmp_path).items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackerError, match=reason) as raised:
            open_trackers(TrackedRun(experiment="race"), tmp_path / "run")
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)
        assert "set MLFLOW_TRACKING_URI to another server" in str(raised.value)


def test_a_deleted_experiment_is_told_with_what_restores_it(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    number = client.create_experiment("race")
    client.delete_experiment(number)
    command = f"mlflow experiments restore --experiment-id {number}"
    with pytest.raises(TrackerError, match=command):
        open_trackers(TrackedRun(experiment="race"), tmp_path / "run")
    client.restore_experiment(number)
    with run(finished_run(tmp_path / "run")):
        pass


def test_artifacts_that_cannot_be_written_are_told_before_anything_is_trained(tmp_path):
    out = finished_run(tmp_path / "run")
    (tmp_path / "mlartifacts").write_text("no folder")
    with pytest.raises(TrackerError, match="mlartifacts"), run(out):
        raise AssertionError("it was trained")


def test_a_registry_that_cannot_be_used_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "carrier-pigeon://x")
    out = finished_run(tmp_path / "run")
    way_out = "carrier-pigeon.*name another in MLFLOW_REGISTRY_URI"
    with pytest.raises(TrackerError, match=way_out), run(out):
        raise AssertionError("it was trained")


def test_a_locked_database_is_told(tmp_path):
    open_trackers(TrackedRun(experiment="race"), tmp_path / "run")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("begin exclusive")
        with pytest.raises(TrackerError, match="database is locked"):
            open_trackers(TrackedRun(experiment="race"), tmp_path / "run")


@pytest.mark.parametrize("way", ["shut", "hang", "refuse 401", "refuse 500"])
def test_a_server_that_is_gone_is_told_within_its_timeout(door, tmp_path, monkeypatch, way):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    name, *status = way.split()
    getattr(door, name)(*map(int, status))
    begun = time.monotonic()
    with pytest.raises(TrackerError, match=f"MLflow at {door.uri} failed") as raised:
        open_trackers(TrackedRun(experiment="race"), tmp_path / "run")
    assert time.monotonic() - begun < 6
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("way", ["shut", "hang", "refuse 401", "refuse 500", "refuse 413 PUT"])
def test_a_server_that_goes_loses_no_run_and_takes_it_later(
    door, server, tmp_path, monkeypatch, capfd, way
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    out, ear = finished_run(tmp_path / "run"), Ear()
    (out / "trials.json").write_text(json.dumps(TRIALS))
    name, *words = way.split()
    with run(out, ear):
        getattr(door, name)(*(int(word) if word.isdigit() else word for word in words))
    (line,) = ear.lines
    assert line.startswith(f"not tracked: MLflow at {door.uri} failed (")
    assert "\n" not in line
    command = f"MLFLOW_TRACKING_URI={door.uri} python -m jobs.track {out}"
    assert line.endswith(f"the results are complete. Track them later: {command}")
    assert capfd.readouterr() == ("", "")
    door.shut()
    door.open()
    assert track(out).endswith((out / "mlflow_run").read_text())
    (out / "trials.json").unlink()
    children(MlflowClient(server), out)


def children(client, out):
    run_id = (out / "mlflow_run").read_text()
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [0, 1, 2, 3]
    assert len(client.search_model_versions(f"run_id = '{run_id}'")) == 1
    where = f"tags.`mlflow.parentRunId` = '{run_id}'"
    runs = client.search_runs([parent.info.experiment_id], where)
    assert {child.info.run_name for child in runs} == {"tpe 000", "tpe 001", "tpe 002"}
    for child in runs:
        assert child.info.status == "FINISHED"
        evaluations = client.get_metric_history(child.info.run_id, "select/loss")
        assert [(m.step, m.value) for m in evaluations] == [(1, 0.8), (2, 0.7)]


def test_steps_that_were_logged_in_part_are_completed(tmp_path):
    out = finished_run(tmp_path / "run")
    rows = [{"step": i, "loss": float(i), "tokens": 8 * i} for i in range(4)]
    (out / "history.json").write_text(json.dumps({"score": rows}))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with run(out):
        run_id = (out / "mlflow_run").read_text()
        for step in (0, 1, 2):
            client.log_metric(run_id, "train/loss", float(step), step=step)
        client.log_metric(run_id, "train/tokens", 0.0, step=0)
    for name, values in (("train/loss", [0, 1, 2, 3]), ("train/tokens", [0, 8, 16, 24])):
        logged = client.get_metric_history(run_id, name)
        assert sorted((m.step, m.value) for m in logged) == list(enumerate(values))


def test_what_is_deleted_while_a_run_trains_ends_in_one_line(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    out, ear = finished_run(tmp_path / "run"), Ear()
    with run(out, ear):
        client.delete_run((out / "mlflow_run").read_text())
    assert "must be in the 'active' state" in ear.lines[0]
    assert ear.lines[0].endswith(f"Track them later: python -m jobs.track {out}")
    track(out)
    logged = assert_tracked(client, out)
    with run(out, ear):
        client.delete_experiment(logged.info.experiment_id)
    assert len(ear.lines) == 2
    with pytest.raises(TrackerError, match="was deleted: restore it"):
        track(out)
    track(out, "other")
    elsewhere = assert_tracked(client, out)
    assert client.get_experiment(elsewhere.info.experiment_id).name == "other"


def test_a_full_or_broken_store_at_the_end_loses_no_run(tmp_path):
    out, ear = finished_run(tmp_path / "run"), Ear()
    with run(out, ear):
        os.rename(tmp_path / "mlartifacts", tmp_path / "away")
        (tmp_path / "mlartifacts").write_text("no folder")
    (line,) = ear.lines
    assert "mlartifacts" in line
    (tmp_path / "mlartifacts").unlink()
    track(out)
    assert_tracked(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), out)


def test_a_password_in_the_address_is_not_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pass@word@127.0.0.1:{port}")
    with pytest.raises(TrackerError) as raised:
        open_trackers(TrackedRun(experiment="race"), tmp_path / "run")
    assert not re.search("pass|word", str(raised.value))


def test_a_secret_of_the_environment_or_the_command_is_in_no_record_store_or_page(
    tmp_path, monkeypatch
):
    canary = "C4nary-hunter2"
    for name in ("RM_KEY", "VLLM_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, canary)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "laser",
            "--arms",
            f"a=http://u:{canary}@h",
            f"b=http://h?key={canary}",
            f"token={canary}",
        ],
    )
    server = PolicyServerConfig(url="http://h?key_variable=VLLM_KEY#base")
    arms = ArmsConfig(models=("a=tei+http://h?key_variable=RM_KEY",))
    config = as_dict(LaserConfig(arms=arms, server=server, out=str(tmp_path / "run")))
    out, ear = finished_run(tmp_path / "run"), Ear()
    (out / "config.json").write_text(json.dumps(config))
    with run(out, ear, config):
        pass
    write_report(out)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"mlflow.db", "run.json", "report.html", "config.json"} <= {file.name for file in files}
    for file in files:
        assert canary.encode() not in file.read_bytes(), file
    assert canary not in "\n".join(ear.lines)
    assert b"RM_KEY" in (tmp_path / "mlflow.db").read_bytes()


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    for name in ("tracking.json", "metrics.json"):
        with pytest.raises(FileNotFoundError, match=f"has no {name}"):
            track(tmp_path)
        (tmp_path / "tracking.json").write_text("{}")
        (tmp_path / "config.json").write_text("{}")


def preference(model, folder):
    """Words of a run that trains for some seconds in its own process."""
    return [
        *(sys.executable, "-m", "jobs.preference", "pairs"),
        *("--pairs", *write_pairs(folder, (60, 60)), "--out", str(folder / "run")),
        *("backbone.trained:full", "--backbone.model", str(model)),
        *("--backbone.dtype", "float32"),
        *("--backbone.rendering.max-prompt-tokens", "48", "--schedule.num-epochs", "8"),
        *("--num-workers", "0", "--store", str(folder / "store")),
    ]


def test_a_server_that_goes_while_a_job_trains_takes_the_run_from_the_printed_command(
    door, server, tiny_model_folder, tmp_path
):
    out, env = tmp_path / "run", os.environ | {"MLFLOW_RUN_ID": "0" * 32}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(preference(tiny_model_folder, tmp_path), cwd=ROOT, env=env, **pipes)
    while not (out / "train").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    client = MlflowClient(server)
    run_id = (out / "mlflow_run").read_text()
    assert client.get_run(run_id).info.status == "RUNNING"
    door.shut()
    stdout, stderr = job.communicate(timeout=200)
    assert job.returncode == 0, stdout + stderr
    assert "Traceback" not in stdout + stderr
    (line,) = [line for line in stdout.splitlines() if "not tracked" in line]
    for name in ("report.html", "metrics.json", "model/model.safetensors"):
        assert (out / name).stat().st_size
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    door.open()
    command = line.partition("Track them later: ")[2].replace("python", sys.executable, 1)
    again = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"tracked: MLflow run {run_id}" in again.stdout
    assert before == {path: path.read_bytes() for path in before}
    logged = client.get_run(run_id)
    assert logged.info.status == "FINISHED"
    steps = len(json.loads((out / "history.json").read_text())["score"])
    assert len(client.get_metric_history(run_id, "train/loss")) == steps
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    source = client.get_model_version_download_uri(version.name, version.version)
    listed = mlflow.artifacts.list_artifacts(source, tracking_uri=server)
    files = {Path(file.path).name for file in listed}
    assert {"MLmodel", "model.safetensors", "panoply.json"} <= files
    assert version.name == "preference"


def test_a_job_whose_experiment_was_deleted_trains_nothing(tiny_model_folder, tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.delete_experiment(client.create_experiment("preference"))
    pairs, out = write_pairs(tmp_path, (60,)), tmp_path / "run"
    config = small_config(tiny_model_folder, pairs, out=str(out), store=str(tmp_path / "store"))
    with pytest.raises(TrackerError, match=r"experiment .preference.*was deleted"):
        run_preference(config, RunLogger())
    assert not out.exists()
