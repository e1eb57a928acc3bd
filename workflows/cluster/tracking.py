"""MLflow: one run with its configuration, data ids, metrics, plots, page and registered model.

The tracker is opened before anything is trained, so that a broken one costs nothing. The results
are read from the run folder at the end, so they can be sent again (`jobs.track`), and a finished
run stays finished if MLflow fails.

Only the driver talks to MLflow, through a client with run ids of its own: an active run of the
process, MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME are neither read nor
changed. `MLFLOW_TRACKING_URI` names a server; without it a SQLite file beside the run folder is
used, which is for one machine.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import shlex
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from panoply.files import write_json
from panoply.report.progress import RunLogger
from panoply.secret import without_secrets
from workflows.cluster.mlflow_calls import (
    MODEL_SECONDS,
    TrackerError,
    database_lock,
    mlflow_call,
)

RUN_FILE = "mlflow_run"
"""File with the id of the MLflow run, which the same command and `jobs.track` continue."""
ENTRY_FILE = "tracking.json"
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a run that it does not hold, and for a text that is no id."""

REGISTRY_ADVICE = ". Models are registered there: mend it, or name another in MLFLOW_REGISTRY_URI"


def git_commit() -> str:
    """Returns the commit of the working folder, or 'unknown' outside a checkout.

    A folder that is submitted to a cluster has no `.git`: there `PANOPLY_COMMIT` holds the commit.
    """
    if commit := os.environ.get("PANOPLY_COMMIT"):
        return commit
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested values under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True, slots=True)
class Entry:
    """A run's entry in MLflow, except its results; stored in `OUT/tracking.json`."""

    experiment: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    model: str
    """Name under which `OUT/model` is registered; empty for none."""
    steps: str
    """Key of `history.json` whose steps are logged; empty for none."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """An MLflow experiment, and the folder of one run that it tracks."""

    client: MlflowClient
    experiment: str
    experiment_id: str
    out: Path

    @contextmanager
    def run(
        self,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        logger: RunLogger,
        *,
        model: str = "",
        steps: str = "",
    ) -> Generator[None]:
        """Starts an MLflow run, or continues that of an earlier try, and fills it at the end.

        An error at the end is logged, with the command that tracks later, and not raised.

        Args:
            config: values logged as parameters.
            tags: tags of the run, beside the commit.
            logger: receives the MLflow run, or why there is none.
            model: name under which `OUT/model` is registered; empty for none.
            steps: key of `history.json` whose steps are logged; empty for none.

        Raises:
            TrackerError: MLflow cannot be used, before anything was trained.
        """
        params = {name: str(value) for name, value in flat(config)}
        entry = Entry(self.experiment, params, {"git_commit": git_commit(), **tags}, model, steps)
        write_json(self.out / ENTRY_FILE, asdict(entry))
        run_id = self.begin(entry)
        try:
            yield
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with suppress(TrackerError), mlflow_call(self.client.tracking_uri):
                self.client.set_terminated(run_id, status)
            raise
        try:
            self.fill(entry, run_id)
        except TrackerError as error:
            logger.info(f"not tracked: {error}; the results are complete. {self._track_later()}")
        else:
            logger.info(f"tracked: {self.place(run_id)}")

    def begin(self, entry: Entry) -> str:
        """Returns the id of a run with its parameters and tags, which `OUT/mlflow_run` keeps.

        Raises:
            TrackerError: MLflow, its registry or its artifact store refused something.
        """
        client = self.client
        if entry.model:
            with mlflow_call(_registry_uri(client), REGISTRY_ADVICE):
                client.search_registered_models(max_results=1)
        with mlflow_call(client.tracking_uri, _advice()):
            run = self._earlier_run()
            if run is None:
                run = client.create_run(self.experiment_id, None, resolve_tags(), self.out.name)
                (self.out / RUN_FILE).write_text(run.info.run_id)
            else:
                client.update_run(run.info.run_id, "RUNNING")

            # A run may continue with other values of some settings. MLflow does not let parameters
            # change, so the new values become tags.
            params = {_name(name): value[:500] for name, value in entry.params.items()}
            logged = run.data.params
            changed = {f"later.{n}": v for n, v in params.items() if logged.get(n, v) != v}
            client.log_batch(
                run.info.run_id,
                params=[Param(n, v) for n, v in params.items() if n not in logged],
                tags=[RunTag(n, v) for n, v in {**entry.tags, **changed}.items()],
            )
            client.log_artifact(run.info.run_id, str(self.out / "config.json"))
        return run.info.run_id

    def fill(self, entry: Entry, run_id: str) -> None:
        """Logs the results in a finished run's folder, and registers its model.

        Values that an earlier try logged are not logged twice.

        Raises:
            TrackerError: MLflow, its registry or its artifact store refused something.
        """
        client, uri, model = self.client, self.client.tracking_uri, self.out / "model"
        metrics = _numbers(_read_json(self.out / "metrics.json"))
        history = _read_json(self.out / "history.json").get(entry.steps, [])
        trials = _read_json(self.out / "trials.json").get("trials", [])
        kinds = (".png", ".svg", ".html", ".json")
        files = sorted(path for path in self.out.iterdir() if path.suffix in kinds)
        with mlflow_call(uri):
            run = client.get_run(run_id)
            log_numbers(client, run, metrics)
            log_steps(client, run, history)
            self._log_trials(run_id, trials)
            for path in files:
                if path.name != ENTRY_FILE:
                    client.log_artifact(run_id, str(path))
        if entry.model and model.is_dir():
            with mlflow_call(uri, timeout=MODEL_SECONDS):
                client.log_artifacts(run_id, str(model), "model")
            with mlflow_call(_registry_uri(client)):
                with _may_exist():
                    client.create_registered_model(entry.model)
                if not client.search_model_versions(f"run_id = '{run_id}'"):
                    source = f"{run.info.artifact_uri}/model"
                    client.create_model_version(entry.model, source, run_id)
        with mlflow_call(uri):
            client.set_terminated(run_id)

    def place(self, run_id: str) -> str:
        """Returns the name of an MLflow run, with its page if a server shows one."""
        uri = without_secrets(self.client.tracking_uri).rstrip("/")
        if not uri.startswith("http"):
            return f"MLflow run {run_id}"
        return f"MLflow run {run_id}, {uri}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def _track_later(self) -> str:
        """Returns a sentence with the command that tracks the finished run."""
        command = shlex.join(["python", "-m", "jobs.track", str(self.out)])
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            return f"Track them later: {command}"
        if uri != without_secrets(uri):
            return f"Track them later, with the same MLFLOW_TRACKING_URI: {command}"
        return f"Track them later: MLFLOW_TRACKING_URI={shlex.quote(uri)} {command}"

    def _earlier_run(self) -> Run | None:
        """Returns the run that an earlier try started, if it is still in this experiment."""
        file = self.out / RUN_FILE
        if not file.exists():
            return None
        try:
            run = self.client.get_run(file.read_text().strip())
        except MlflowException as error:
            if error.error_code in NO_SUCH_RUN:
                return None
            raise
        is_active = run.info.lifecycle_stage == LifecycleStage.ACTIVE
        return run if is_active and run.info.experiment_id == self.experiment_id else None

    def _log_trials(self, run_id: str, trials: Sequence[Mapping[str, Any]]) -> None:
        """Logs each trial of a search as a child of its run."""
        if not trials:
            return
        client, parent = self.client, {MLFLOW_PARENT_RUN_ID: run_id}
        of_this_run = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
        runs = client.search_runs([self.experiment_id], of_this_run, max_results=50_000)
        children = {child.info.run_name: child for child in runs}
        for trial in trials:
            name = f"{trial['search']} {trial['number']:03d}"
            child = children.get(name) or client.create_run(
                self.experiment_id, None, resolve_tags(parent), name
            )
            point = {n: str(v) for n, v in trial["point"].items() if n not in child.data.params}
            client.log_batch(
                child.info.run_id,
                params=[Param(n, value) for n, value in point.items()],
                tags=[RunTag(n, trial[n]) for n in ("search", "state")],
            )
            losses = [{"step": i, "eval_loss": loss} for i, loss in enumerate(trial["losses"], 1)]
            log_steps(client, child, losses, prefix="")
            log_numbers(client, child, _numbers({"select_loss": trial["select_loss"]}))
            client.set_terminated(child.info.run_id)


def open_tracker(experiment: str, out: Path) -> Tracker:
    """Returns the tracker of a run folder, once MLflow answers and has the experiment.

    Raises:
        TrackerError: MLflow cannot be used, or the experiment was deleted.
    """
    uri = _tracking_uri(out)
    with mlflow_call(uri, _advice()), database_lock(uri):
        client = MlflowClient(uri)
        stored = client.get_experiment_by_name(experiment)
        if stored is None:
            # Without a location, artifacts would go to a folder of the current directory.
            artifacts = (out.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            with _may_exist():
                client.create_experiment(experiment, artifacts)
            stored = client.get_experiment_by_name(experiment)
        if stored is None or stored.lifecycle_stage != LifecycleStage.ACTIVE:
            number = stored.experiment_id if stored else "ID"
            restore = shlex.join(["mlflow", "experiments", "restore", "--experiment-id", number])
            raise TrackerError(
                f"the experiment {experiment!r} of MLflow at {without_secrets(uri)} was deleted: "
                f"restore it (`{restore}`, with that address in MLFLOW_TRACKING_URI), or name "
                "another with `--experiment`"
            )
        return Tracker(client, experiment, stored.experiment_id, out)


def track(out: Path, experiment: str = "") -> str:
    """Tracks a finished run from the files in its folder; returns the MLflow run.

    Args:
        out: the run folder.
        experiment: experiment to track in; empty for that of the run.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        TrackerError: MLflow cannot be used.
    """
    for name in (ENTRY_FILE, "config.json", "metrics.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(
                f"{str(out)!r} has no {name}: name the `--out` of a finished run, or finish that "
                "run by its own command"
            )
    entry = Entry(**_read_json(out / ENTRY_FILE))
    entry = replace(entry, experiment=experiment or entry.experiment)
    tracker = open_tracker(entry.experiment, out)
    run_id = tracker.begin(entry)
    tracker.fill(entry, run_id)
    return tracker.place(run_id)


def log_numbers(client: MlflowClient, run: Run, numbers: Mapping[str, float]) -> None:
    """Logs the numbers that a run does not hold yet, or holds with another value."""
    now, logged = _now(), run.data.metrics
    metrics = [Metric(name, v, now, 0) for name, v in numbers.items() if logged.get(name) != v]
    client.log_batch(run.info.run_id, metrics)


def log_steps(
    client: MlflowClient, run: Run, history: Sequence[Mapping[str, Any]], prefix: str = "train."
) -> None:
    """Logs the numbers of each step under a prefix, once however often a run is continued."""
    run_id, now = run.info.run_id, _now()
    logged: dict[str, set[int]] = {}
    metrics: list[Metric] = []
    for row in history:
        for name, value in _numbers(row, prefix).items():
            if name == f"{prefix}step":
                continue
            if name not in logged:
                # A run that holds the name may lack some of its steps.
                holds = name in run.data.metrics
                before = client.get_metric_history(run_id, name) if holds else []
                logged[name] = {metric.step for metric in before}
            if row["step"] not in logged[name]:
                metrics.append(Metric(name, value, now, int(row["step"])))
    client.log_batch(run_id, metrics)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the finite numbers among nested values, by names that MLflow accepts."""
    return {
        _name(name): float(value)
        for name, value in flat(values, prefix)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _name(name: str) -> str:
    """Returns a name that MLflow accepts: without some characters, and not like a relative path."""
    plain = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:250]
    if posixpath.normpath(plain) == plain and not plain.startswith((".", "/")):
        return plain
    return plain.replace("/", "_").strip(".") or "_"


def _read_json(file: Path) -> dict[str, Any]:
    """Returns the content of a file; nothing if there is none."""
    return json.loads(file.read_text()) if file.is_file() else {}


def _now() -> int:
    return int(time.time() * 1000)


def _tracking_uri(out: Path) -> str:
    """Returns the address of MLflow for a run folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.parent / 'mlflow.db'}"


def _registry_uri(client: MlflowClient) -> str:
    """Returns the address of the registry of models."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or client.tracking_uri


def _advice() -> str:
    """Returns the end of an error: what to do when MLflow cannot be used."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return (
            ". Start or mend that, or set MLFLOW_TRACKING_URI to another server; without that "
            "variable, runs are tracked in a SQLite file beside their folder"
        )
    return ". Mend or move that file, or name a server in MLFLOW_TRACKING_URI"


@contextmanager
def _may_exist() -> Generator[None]:
    """Ignores that another run created the name first."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
