"""Resolves the place of a scorer, once in the driver, so that all replicas load the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from panoply.config.serve import ServedModelConfig
from panoply.hub.door.fetch import is_hub_name
from panoply.scorers.where import LocalModel, open_scorer, parse_where
from workflows.cluster.ray_cluster import store_root

REGISTRY = "models:/"


def resolve_model(config: ServedModelConfig) -> ServedModelConfig:
    """Returns a scorer's settings with its WHERE checked, and fixed where it may move.

    A folder becomes absolute, and a name of MLflow's registry the folder that it stands for now.

    Raises:
        ValueError, OSError: there is no such model, function, table or dialect.
    """
    where = parse_where(config.where)
    if not isinstance(where, LocalModel):
        open_scorer(config, on_node=False)
        return config
    if where.path.startswith(REGISTRY):
        return replace(config, where=registered_folder(where.path))
    folder = Path(where.path).expanduser()
    if folder.is_dir():
        return replace(config, where=str(folder.absolute()))
    if not is_hub_name(where.path):
        raise FileNotFoundError(
            f"model {config.name!r}: {where.path!r} is no folder in {str(Path.cwd())!r}, and no "
            "hub name 'owner/name'. A run leaves its model in OUT/model; `make demo` makes "
            "runs/embedded/model"
        )
    return config


def registered_folder(uri: str) -> str:
    """Returns the folder of a model in MLflow's registry, `models:/NAME@ALIAS` or `/VERSION`.

    The alias is read once, here: moved later, it changes no server that runs. What is no folder
    that this machine sees is copied below `PANOPLY_STORE`, which all nodes share.

    Raises:
        ValueError: the registry has no such model, version or alias, or there is no folder to copy
            it to.
    """
    name, _, alias = uri.removeprefix(REGISTRY).partition("@")
    client = MlflowClient()
    try:
        if alias:
            version = client.get_model_version_by_alias(name, alias).version
        else:
            name, _, version = name.partition("/")
        source = client.get_model_version_download_uri(name, str(version))
    except MlflowException as error:
        raise ValueError(
            f"no model {uri!r} in the registry {mlflow.get_registry_uri()!r}: {error.message}. "
            "Models are named models:/NAME@ALIAS or models:/NAME/VERSION, and "
            "MLFLOW_TRACKING_URI names the registry"
        ) from error
    local = Path(source.removeprefix("file://"))
    if local.is_dir():
        return str(local)
    if "://" in (root := store_root("")):
        raise ValueError(
            f"{uri!r} lies at {source!r}, and PANOPLY_STORE is the URI {root!r}, from which no "
            "model loads: copy it to a folder that all nodes share (`mlflow artifacts download`), "
            "and serve that"
        )
    folder = Path(root) / "models" / f"{name}-{version}"
    if not folder.is_dir():
        partial = folder.with_suffix(".part")
        fetched = mlflow.artifacts.download_artifacts(source, dst_path=str(partial))
        Path(fetched).rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
    return str(folder)
