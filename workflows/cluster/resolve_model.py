"""Resolves the place of a scorer, once in the driver, so that all replicas load the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from actors.bandit_contexts import num_features
from panoply.config.serve import ServedModelConfig
from panoply.config.yaml_lines import with_line
from panoply.data.schema import digest
from panoply.files import whole_folder
from panoply.hub.door.fetch import is_hub_name
from panoply.hub.in_process import InProcessModel
from panoply.scorers.bandit.opening import log_uri, open_arms, read_bandit
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    LocalModel,
    Scorer,
    open_scorer,
    parse_where,
)
from panoply.seal import check_seal
from panoply.secret import without_secrets
from workflows.cluster.ray_cluster import store_root

REGISTRY = "models:/"
MODEL_FILES = ("panoply.json", "config.json")
"""Files of which a model's folder has one at least."""


def resolve_model(config: ServedModelConfig, *, is_served: bool = False) -> ServedModelConfig:
    """Returns a scorer's settings with its WHERE checked, and fixed where it may move.

    A folder becomes absolute, and a name of MLflow's registry the folder that it stands for now.

    Args:
        config: the settings.
        is_served: whether a server asks for it, which alone has a bandit.

    Raises:
        ValueError, OSError: there is no such model, function, table or dialect.
    """
    where = parse_where(config.where)
    if isinstance(where, CombinedScorers):
        config = replace(config, where=f"combine:{Path(where.file).expanduser().absolute()}")
    if isinstance(where, BanditFile) and is_served:
        file = Path(where.file).expanduser().absolute()
        _check_bandit(config, file)
        return replace(config, where=f"bandit:{file}")
    if not isinstance(where, LocalModel):
        open_scorer(config, on_node=False, open_model=model_in_process)
        return config
    if where.path.startswith(REGISTRY):
        return replace(config, where=where.at(registered_folder(where.path)))
    folder = Path(where.path).expanduser()
    if folder.is_dir():
        return replace(config, where=where.at(str(folder.absolute())))
    if not is_hub_name(where.path):
        raise FileNotFoundError(
            f"model {config.name!r}: {where.path!r} is no folder in {str(Path.cwd())!r}, and no "
            "hub name 'owner/name'. A run leaves its model in OUT/model; `make demo` makes "
            "runs/embedded/model"
        )
    return config


def _check_bandit(config: ServedModelConfig, file: Path) -> None:
    """Checks the file of a bandit, its arms, and the model of its context.

    Raises:
        ValueError, OSError: "FILE:LINE: " and what is wrong.
    """
    settings = read_bandit(file)

    def open_arm(name: str, where: str) -> Scorer:
        arm = replace(config, name=name, where=where)
        return open_scorer(arm, on_node=False, open_model=model_in_process)

    open_arms(file, settings, open_arm)
    with with_line(file):
        try:
            num_features(settings.context)
        except OSError as error:
            raise ValueError(f"`context.model`: {error}") from error


def check_logs(models: Sequence[ServedModelConfig]) -> None:
    """Checks that no two bandits of a server write one log.

    Args:
        models: resolved.

    Raises:
        ValueError: two do.
    """
    names: dict[str, str] = {}
    for model in models:
        where = parse_where(model.where)
        if isinstance(where, BanditFile):
            file = Path(where.file)
            log = log_uri(file, read_bandit(file))
            if log in names:
                raise ValueError(
                    f"{names[log]!r} and {model.name!r} would write one log, {log!r}: serve one of "
                    "them, or give them a file and a `log` each"
                )
            names[log] = model.name


def model_in_process(config: ServedModelConfig) -> InProcessModel:
    """Returns a reward model as a scorer of this process, which loads it when it is asked.

    Raises:
        ValueError, OSError: as `resolve_model`.
    """
    return InProcessModel(resolve_model(config))


def registered_folder(uri: str) -> str:
    """Returns the folder of a model in MLflow's registry, `models:/NAME@ALIAS` or `/VERSION`.

    The alias is read once, here: moved later, it changes no server that runs. A version that lies
    in a folder which this machine sees is taken from there, if that is a model's folder. Any other
    is copied below `PANOPLY_STORE`, which all nodes share, under a name of its own for each
    registry, run and place.

    Raises:
        ValueError: the registry has no such model, version or alias, what it names is no model, or
            there is no folder to copy it to.
    """
    name, _, alias = uri.removeprefix(REGISTRY).partition("@")
    client = MlflowClient()
    try:
        if alias:
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = name.partition("/")
            version = client.get_model_version(name, number)
        source = client.get_model_version_download_uri(name, str(version.version))
    except MlflowException as error:
        raise ValueError(
            f"no model {uri!r} in the registry {without_secrets(mlflow.get_registry_uri())!r}: "
            f"{without_secrets(error.message)}. "
            "Models are named models:/NAME@ALIAS or models:/NAME/VERSION, and "
            "MLFLOW_TRACKING_URI names the registry"
        ) from error
    parts = urlsplit(source)
    if parts.scheme in ("", "file"):
        local = Path(unquote(parts.path) if parts.scheme else source)
        if not any((local / file).is_file() for file in MODEL_FILES):
            raise ValueError(
                f"{uri!r} lies at {str(local)!r}, which is no model's folder on this machine: it "
                f"has neither {' nor '.join(MODEL_FILES)}. Run this where the registry's artifacts "
                "are, or register the model again"
            )
        return str(local)
    if "://" in (root := store_root("")):
        raise ValueError(
            f"{uri!r} lies at {source!r}, and PANOPLY_STORE is the URI {root!r}, from which no "
            "model loads: copy it to a folder that all nodes share (`mlflow artifacts download`), "
            "and serve that"
        )
    # Two registries may have models of one name: what is the same copy is the same version.
    registry, made = str(mlflow.get_registry_uri()), str(version.creation_timestamp)
    key = digest(registry, source, str(version.run_id), made)
    folder = Path(root) / "models" / f"{name}-{version.version}-{key[:16]}"
    if not folder.is_dir():
        _copy(source, folder)
    return str(folder)


def _copy(source: str, folder: Path) -> None:
    """Downloads a model; the folder appears when it is whole, as its seal says where it has one.

    Raises:
        ValueError: it cannot be downloaded, or is damaged.
    """
    with whole_folder(folder, keeps_earlier=True) as built:
        partial = built / ".download"
        partial.mkdir()
        try:
            fetched = mlflow.artifacts.download_artifacts(source, dst_path=str(partial))
        except MlflowException as error:
            raise ValueError(f"{source!r} cannot be downloaded: {error.message}") from error
        for path in list(Path(fetched).iterdir()):
            path.rename(built / path.name)
        shutil.rmtree(partial)
        check_seal(built)
