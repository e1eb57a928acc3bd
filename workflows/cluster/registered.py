"""Models of MLflow's registry: a name becomes the folder of the version that it stands for."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from panoply.data.schema import digest
from panoply.files import whole_folder
from panoply.seal import check_seal
from panoply.secret import without_secrets
from workflows.cluster.ray_cluster import store_root
from workflows.cluster.resolve_model import REGISTRY

MODEL_FILES = ("panoply.json", "config.json")
"""Files of which a model's folder has one at least."""


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
