"""A run in MLflow: configuration, data, steps, headline metrics, tables, pages and model.

A client with run ids of its own is used: an active run of the process, MLFLOW_RUN_ID,
MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME are neither read nor changed. `MLFLOW_TRACKING_URI`
names a server; without it a SQLite file beside the run folder is used, which is for one machine.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import (
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
)

from panoply.report.headline import finite_numbers, tracker_names
from panoply.report.report import sections_of
from panoply.report.section import Table, is_defined
from workflows.cluster.mlflow_calls import (
    MODEL_SECONDS,
    TrackerError,
    database_lock,
    may_exist,
    mlflow_call,
    without_secrets,
)
from workflows.cluster.mlflow_data import dataset_inputs
from workflows.cluster.tracked_results import Entry, Results, Rows, step_numbers

RUN_FILE = "mlflow_run"
"""File with the id of the MLflow run, which the same command and `jobs.track` continue."""
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a run that it does not hold, and for a text that is no id."""
REGISTRY_ADVICE = ". Models are registered there: mend it, or name another in MLFLOW_REGISTRY_URI"
LONGEST_VALUE = 500
"""Characters of a parameter."""


@dataclass(slots=True)
class MlflowRun:
    """A run folder, and its run in an experiment of MLflow."""

    client: MlflowClient
    experiment_id: str
    out: Path
    opened: int = field(default_factory=lambda: int(time.time() * 1000))
    """Time in milliseconds, at which its run begins."""
    run_id: str = ""
    steps: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    """Steps that MLflow has, by metric."""

    @classmethod
    def open(cls, experiment: str, out: Path) -> MlflowRun:
        """Returns a run that has not begun, once MLflow answers and has the experiment.

        Raises:
            TrackerError: MLflow cannot be used, or the experiment was deleted.
        """
        uri = _tracking_uri(out)
        with mlflow_call(uri, _advice()), database_lock(uri):
            client = MlflowClient(uri)
            stored = client.get_experiment_by_name(experiment)
            if stored is None:
                # Without a location, artifacts would go to a folder of the current directory.
                beside = (out.parent / "mlartifacts").as_uri()
                with may_exist():
                    client.create_experiment(
                        experiment, beside if uri.startswith("sqlite:") else None
                    )
                stored = client.get_experiment_by_name(experiment)
            if stored is None or stored.lifecycle_stage != LifecycleStage.ACTIVE:
                number = stored.experiment_id if stored else "ID"
                restore = ["mlflow", "experiments", "restore", "--experiment-id", number]
                raise TrackerError(
                    f"the experiment {experiment!r} of MLflow at {without_secrets(uri)} was "
                    f"deleted: restore it (`{shlex.join(restore)}`, with that address in "
                    "MLFLOW_TRACKING_URI), or name another with `--experiment`"
                )
            return cls(client, stored.experiment_id, out)

    @property
    def place(self) -> str:
        """Name of the MLflow run, with its page if a server shows one."""
        uri = without_secrets(self.client.tracking_uri).rstrip("/")
        if not uri.startswith("http"):
            return f"MLflow run {self.run_id}"
        page = f"{uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"MLflow run {self.run_id}, {page}"

    def begin(self, entry: Entry) -> None:
        """Begins a run with its parameters, tags and data, whose id `OUT/mlflow_run` keeps.

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
                run = client.create_run(
                    self.experiment_id, self.opened, resolve_tags(), self.out.name
                )
                (self.out / RUN_FILE).write_text(run.info.run_id)
            else:
                client.update_run(run.info.run_id, "RUNNING")
            self.run_id = run.info.run_id

            # A run may continue with other values of some settings. MLflow does not let parameters
            # change, so the new values become tags.
            names = tracker_names(entry.params)
            params = {names[n]: value[:LONGEST_VALUE] for n, value in entry.params.items()}
            logged = run.data.params
            changed = {f"later.{n}": v for n, v in params.items() if logged.get(n, v) != v}
            client.log_batch(
                self.run_id,
                params=[Param(n, v) for n, v in params.items() if n not in logged],
                tags=[RunTag(n, v) for n, v in {**entry.tags, **changed}.items()],
            )
            if inputs := list(dataset_inputs(entry.data)):
                client.log_inputs(self.run_id, inputs)
            client.log_artifact(self.run_id, str(self.out / "config.json"))

    def log_steps(self, group: str, rows: Rows) -> None:
        """Logs the numbers of steps, each once however often a run is continued.

        Raises:
            TrackerError: MLflow refused them, or is gone.
        """
        with mlflow_call(self.client.tracking_uri):
            self._log_steps(self.run_id, group, rows)

    def stop(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Ends a run that came to no results.

        Raises:
            TrackerError: MLflow is gone.
        """
        with mlflow_call(self.client.tracking_uri):
            self.client.set_terminated(self.run_id, status)

    def finish(self, entry: Entry, results: Results) -> None:
        """Logs the results of a finished run, and registers its model.

        What an earlier try logged is not logged twice.

        Raises:
            TrackerError: MLflow, its registry or its artifact store refused something.
        """
        client, uri, model = self.client, self.client.tracking_uri, self.out / "model"
        with mlflow_call(uri):
            self._log_numbers(client.get_run(self.run_id), results.headline)
            for name, rows in results.history.items():
                group = "train" if name == entry.steps else f"train-{name}"
                self._log_steps(self.run_id, group, rows)
            self._log_trials(results.trials)
            self._log_tables(results)
            for path in results.files:
                client.log_artifact(self.run_id, str(path))
        if entry.model and model.is_dir():
            self._log_model(entry.model, model)
        with mlflow_call(uri):
            client.set_terminated(self.run_id)

    def track_later(self) -> str:
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

    def _log_numbers(self, run: Run, numbers: Mapping[str, float]) -> None:
        """Logs the numbers that a run does not hold yet, or holds with another value."""
        now, names = _now(), tracker_names(numbers)
        metrics = [
            Metric(names[path], value, now, 0)
            for path, value in numbers.items()
            if run.data.metrics.get(names[path]) != value
        ]
        self.client.log_batch(run.info.run_id, metrics)

    def _log_steps(self, run_id: str, group: str, rows: Rows) -> None:
        """Logs the numbers of steps that a run lacks."""
        now = _now()
        metrics: list[Metric] = []
        for row in rows:
            numbers, step = step_numbers(group, row), int(row["step"])
            names = tracker_names(numbers)
            for path, value in numbers.items():
                logged = self._logged_steps(run_id, names[path])
                if step not in logged:
                    metrics.append(Metric(names[path], value, now, step))
                    logged.add(step)
        try:
            self.client.log_batch(run_id, metrics)
        except BaseException:
            self.steps.clear()  # some of them may be there
            raise

    def _logged_steps(self, run_id: str, name: str) -> set[int]:
        """Returns the steps of a metric that a run has."""
        key = f"{run_id}/{name}"
        if key not in self.steps:
            history = self.client.get_metric_history(run_id, name)
            self.steps[key] = {metric.step for metric in history}
        return self.steps[key]

    def _log_trials(self, trials: Rows) -> None:
        """Logs each trial of a search as a child of its run."""
        if not trials:
            return
        client, parent = self.client, {MLFLOW_PARENT_RUN_ID: self.run_id}
        of_this_run = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
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
            losses = [{"step": i, "loss": loss} for i, loss in enumerate(trial["losses"], 1)]
            self._log_steps(child.info.run_id, "select", losses)
            self._log_numbers(child, finite_numbers({"select_loss": trial["select_loss"]}))
            client.set_terminated(child.info.run_id)

    def _log_tables(self, results: Results) -> None:
        """Logs the tables of the report, as `mlflow.load_table` reads them and the page shows."""
        listed: list[dict[str, str]] = []
        for section in sections_of(results.metrics):
            tables = [block for block in section.blocks if isinstance(block, Table)]
            for number, table in enumerate(tables, 1):
                if table.is_empty:
                    continue
                path = f"tables/{section.id}-{number}.json"
                self.client.log_text(self.run_id, json.dumps(_split(table)), path)
                listed.append({"path": path, "type": "table"})
        if listed:
            self.client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(listed))

    def _log_model(self, name: str, folder: Path) -> None:
        """Logs and registers the model, once."""
        # MLflow's modules of models take seconds to load.
        from workflows.cluster.mlflow_model import log_model, register_model

        client, uri = self.client, self.client.tracking_uri
        with mlflow_call(_registry_uri(client)):
            if client.search_model_versions(f"run_id = '{self.run_id}'"):
                return
        with mlflow_call(uri, timeout=MODEL_SECONDS):
            run = client.get_run(self.run_id)
            logged = log_model(client, run, folder)
        with mlflow_call(_registry_uri(client)):
            register_model(client, run, logged, name)


def _split(table: Table) -> dict[str, Any]:
    """Returns a table in the layout of MLflow's: columns, and rows of plain values."""
    rows: list[list[Any]] = []
    for row in table.rows:
        values: list[Any] = [row.name]
        for _, value, text in table.cells(row):
            values.append(value if is_defined(value) else text)
        rows.append(values)
    return {"columns": [table.first, *(column.name for column in table.shown)], "data": rows}


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
