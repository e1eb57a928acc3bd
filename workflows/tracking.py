"""MLflow: one run with its configuration, data ids, metrics, plots, page and registered model.

Only the driver talks to MLflow. `MLFLOW_TRACKING_URI` names a server; without it a SQLite file
beside the run folder is used, which is for one machine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from workflows.trials import Trial

MOST_METRICS = 1000
"""What MLflow takes in one call."""


def git_commit() -> str:
    """Returns the commit of the working folder, or 'unknown' outside a checkout.

    A submitted folder comes without `.git`: there `PANOPLY_COMMIT` tells.
    """
    if told := os.environ.get("PANOPLY_COMMIT"):
        return told
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes strict JSON: what is not defined is null, not NaN."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): strict(v) for k, v in value.items()}  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, list | tuple):
            return [strict(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(strict(values), indent=1, allow_nan=False))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested values under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{name}", value


def log_run(
    experiment: str,
    out: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
    model_name: str,
    history: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Logs a finished run and registers its model; returns the run id.

    The id stands in `OUT/mlflow_run`, so the same command again goes on with the same MLflow run.
    Other runs may do the same at the same time. `history` holds the numbers of each training step,
    under its `step`. A run without a model registers none.
    """
    client = _open(experiment, out)
    with mlflow.start_run(run_id=_begun(client, out / "mlflow_run"), run_name=out.name) as run:
        run_id = run.info.run_id
        _fill(run_id, out, config, metrics, tags)
        log_steps(client, run_id, history)
        if not (out / "model").is_dir():
            return run_id
        with _unless_there():
            client.create_registered_model(model_name)
        mlflow.log_artifacts(str(out / "model"), artifact_path="model")
        if not client.search_model_versions(f"run_id = '{run_id}'"):
            source = f"{run.info.artifact_uri}/model"
            client.create_model_version(model_name, source=source, run_id=run_id)
    return run_id


def log_search(
    experiment: str,
    out: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
    trials: Mapping[str, Trial],
) -> str:
    """Logs a finished search as a run, and each trial by its name as a child; returns the run id.

    As with `log_run`, the same command again goes on with the same runs.
    """
    client = _open(experiment, out)
    with mlflow.start_run(run_id=_begun(client, out / "mlflow_run"), run_name=out.name) as run:
        _fill(run.info.run_id, out, config, metrics, tags)
        where = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"
        found = client.search_runs([run.info.experiment_id], where, max_results=50_000)
        known = {child.info.run_name: child.info.run_id for child in found}
        for name, trial in trials.items():
            with mlflow.start_run(run_id=known.get(name), run_name=name, nested=True):
                mlflow.set_tags({"search": trial.search, "state": trial.state})
                mlflow.log_params(dict(trial.point))
                for look, loss in enumerate(trial.losses, 1):
                    mlflow.log_metric("look_loss", loss, step=look)
                if trial.select_loss is not None:
                    mlflow.log_metric("select_loss", trial.select_loss)
    return run.info.run_id


def _open(experiment: str, out: Path) -> MlflowClient:
    """Returns the tracker of a run folder, with its experiment made and set."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or f"sqlite:///{out.parent / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    if (
        not named
    ):  # MLflow has set it, and the next run of this process would take it for the user's
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    client = MlflowClient(uri)
    # Without a location, artifacts would go to a folder of the current directory.
    where = (out.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    with _unless_there():
        client.create_experiment(experiment, artifact_location=where)
    mlflow.set_experiment(experiment)
    return client


def _fill(
    run_id: str,
    out: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
) -> None:
    """Writes into the run that is begun, and its id into its folder."""
    (out / "mlflow_run").write_text(run_id)
    mlflow.set_tags(dict(tags))
    params = {name: str(value)[:500] for name, value in flat(config)}
    # A run may be continued with other values of some settings, which MLflow does not let change.
    known = MlflowClient().get_run(run_id).data.params
    mlflow.log_params({name: value for name, value in params.items() if name not in known})
    changed = {n: value for n, value in params.items() if known.get(n, value) != value}
    mlflow.set_tags({f"later.{name}": value for name, value in changed.items()})
    numbers = {
        _metric_name(name): float(value)
        for name, value in flat(metrics)
        if isinstance(value, int | float) and math.isfinite(value)
    }
    mlflow.log_metrics(numbers)
    for pattern in ("*.png", "*.html", "*.json"):
        for path in sorted(out.glob(pattern)):
            mlflow.log_artifact(str(path))


def log_steps(client: MlflowClient, run_id: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Logs the numbers of each training step as `train.NAME`, once however often a run goes on."""
    last = max((one.step for one in client.get_metric_history(run_id, "train.loss")), default=-1)
    now = int(time.time() * 1000)
    found = [
        Metric(_metric_name(f"train.{name}"), float(value), now, int(row["step"]))
        for row in history
        if row["step"] > last
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    ]
    for start in range(0, len(found), MOST_METRICS):
        client.log_batch(run_id, found[start : start + MOST_METRICS])


def _begun(client: MlflowClient, file: Path) -> str | None:
    """Returns the run that an earlier try began, if this server knows it."""
    if not file.exists():
        return None
    try:
        return client.get_run(file.read_text()).info.run_id
    except MlflowException:
        return None


@contextmanager
def _unless_there() -> Generator[None]:
    """Lets another run be the first to create a name."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _metric_name(name: str) -> str:
    """Replaces what MLflow does not allow in a metric's name."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:250]
