"""A run's model in MLflow: one of its logged models, with a flavor, and a version of a name.

The files of the model are not copied where MLflow's artifacts lie on the same disk: they become
hard links. A server takes no path of another machine as a model's source, so it gets the files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import packages_distributions, version
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from workflows.cluster.mlflow_calls import may_exist

LOADER = "panoply.hub.pyfunc"
PACKAGES = ("torch", "transformers")
"""Packages of whose versions scores depend, named in the model's requirements."""
EXAMPLE = pd.DataFrame(
    {"prompt": ["How do I boil an egg?"] * 2, "response": ["Ten minutes.", "I do not know."]}
)
SIGNATURE = ModelSignature(
    # A prompt is a text, or a list of messages with role and content.
    inputs=Schema([ColSpec(AnyType(), "prompt"), ColSpec(DataType.string, "response")]),
    outputs=Schema([ColSpec(DataType.double, "score")]),
)


def log_model(client: MlflowClient, run: Run, folder: Path) -> LoggedModel:
    """Logs the model in a folder as a model of a run; a reward model with a pyfunc flavor."""
    logged = client.create_logged_model(run.info.experiment_id, "model", run.info.run_id)
    try:
        if (folder / "panoply.json").is_file():
            with tempfile.TemporaryDirectory() as temporary:
                flavored = Path(temporary) / "model"
                _save_flavor(flavored, logged, run)
                client.log_model_artifacts(logged.model_id, str(flavored))
        _log_files(client, logged, folder)
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def register_model(client: MlflowClient, run: Run, logged: LoggedModel, name: str) -> None:
    """Makes a logged model of a run a version of a registered name, which is made where missing."""
    with may_exist():
        client.create_registered_model(name)
    source = logged.artifact_location
    client.create_model_version(name, source, run.info.run_id, model_id=logged.model_id)


def _save_flavor(path: Path, logged: LoggedModel, run: Run) -> None:
    """Writes `MLmodel`, requirements and an input example to a new folder."""
    model = Model(run_id=run.info.run_id, model_id=logged.model_id)
    # A local version, as in 2.13.0+cpu, is in no public index.
    requirements = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    # Of a folder that is on the path without being installed, no distribution is known.
    for name in packages_distributions().get("panoply", [])[:1]:
        requirements.append(f"{name}[hf]=={version(name)}")
    mlflow.pyfunc.save_model(
        path,
        loader_module=LOADER,
        mlflow_model=model,
        signature=SIGNATURE,
        input_example=EXAMPLE,
        pip_requirements=requirements,
    )


def _log_files(client: MlflowClient, logged: LoggedModel, folder: Path) -> None:
    """Logs the files of a model, as hard links where the artifacts lie on the same disk."""
    place = urlparse(logged.artifact_location)
    if place.scheme in ("", "file"):
        target = Path(unquote(place.path))
        shutil.copytree(folder, target, copy_function=_link, dirs_exist_ok=True)
    else:
        client.log_model_artifacts(logged.model_id, str(folder))


def _link(source: str, target: str) -> None:
    """Links a file, or copies it to another disk."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
