"""Serving: a set of reward models, each a Serve application, behind one gateway.

    models ─ pinned and checked here ─┬─ model-A: judges (one queue and one model each)
                                      ├─ model-B: judges
                                      └─ gateway: every client's dialect, the page, metrics

Applications of their own let a model fail, change and go without the others.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from ray import serve

from actors.arm_judge import arm_of
from actors.gateway import State
from panoply.hub.foreign import is_hub_name
from panoply.serve.config import ArmConfig, ServeConfig
from workflows.cluster import connect, store_root
from workflows.gateway import POLL_SECONDS, PREFIX, gateway_app, states
from workflows.models import model_app
from workflows.progress import Watch

GATEWAY = "gateway"
REGISTRY = "models:/"


def run_serve(config: ServeConfig, watch: Watch) -> None:
    """Serves models until it is stopped, then takes them down.

    Raises:
        ValueError, OSError: a model cannot be served; nothing was started.
        RuntimeError: no model could be started.
    """
    arms = tuple(pinned(arm) for arm in config.arms())
    if config.write:
        Path(config.write).write_text(yaml.safe_dump(serve_file(arms, config), sort_keys=False))
        watch.say(f"wrote {config.write}; next: serve deploy {config.write}")
        return
    connect(math.ceil(sum(arm.scaling.cpus * arm.scaling.max_replicas for arm in arms)))
    with stop_signals() as stopped, deployed(arms, config):
        known: dict[str, tuple[State, str]] = {}
        while not stopped.wait(POLL_SECONDS):
            before, known = known, states([arm.name for arm in arms])
            for name, (state, reason) in known.items():
                if before.get(name) != (state, reason):
                    watch.say(f"{name}: {state}{': ' * bool(reason)}{reason}")
            if all(state == "failed" for state, _ in known.values()):
                raise RuntimeError("no model could be started: see above")
            if before and not is_settled(before) and is_settled(known):
                watch.say(f"http://{config.host}:{config.port}/ has the page, /docs the endpoints")


def is_settled(known: Mapping[str, tuple[State, str]]) -> bool:
    """Whether no model is on its way."""
    return all(state != "starting" for state, _ in known.values())


def pinned(arm: ArmConfig) -> ArmConfig:
    """Returns an arm with its place looked at and fixed, so that all replicas load the same.

    Raises:
        ValueError, OSError: there is no such model, function or dialect.
    """
    if arm.where.startswith(REGISTRY):
        return replace(arm, where=registered(arm.where))
    if arm.kind != "model":
        arm_of(arm, on_node=False)
        return arm
    folder = Path(arm.where).expanduser()
    if folder.is_dir():
        return replace(arm, where=str(folder.absolute()))
    if not is_hub_name(arm.where):
        raise FileNotFoundError(
            f"model {arm.name!r}: {arm.where!r} is no folder in {str(Path.cwd())!r}, and no hub "
            "name 'owner/name'. A run leaves its model in OUT/model; `make demo` makes "
            "runs/embedded/model"
        )
    return arm


def registered(uri: str) -> str:
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


def targets(arms: Sequence[ArmConfig], config: ServeConfig) -> list[tuple[str, str, Any]]:
    """Returns name, import path and arguments of every application."""
    models = [(PREFIX + arm.name, "workflows.models:model_app", asdict(arm)) for arm in arms]
    keys = {arm.name: arm.key_variable for arm in arms if arm.key_variable}
    asked = asdict(config.gateway) | {"models": [arm.name for arm in arms], "keys": keys}
    return [*models, (GATEWAY, "workflows.gateway:gateway_app", asked)]


def serve_file(arms: Sequence[ArmConfig], config: ServeConfig) -> dict[str, Any]:
    """Returns what `serve deploy` reads: every setting of every model, to be changed there."""
    return {
        "http_options": {"host": config.host, "port": config.port},
        "applications": [
            {
                "name": name,
                "route_prefix": "/" if name == GATEWAY else None,
                "import_path": path,
                "args": args,
            }
            for name, path, args in targets(arms, config)
        ],
    }


@contextmanager
def deployed(arms: Sequence[ArmConfig], config: ServeConfig) -> Generator[None]:
    """Starts the applications; takes them down at the end, and Serve too if it was not there."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    was_there = bool(serve.status().proxies)
    serve.start(http_options={"host": config.host, "port": config.port})
    apps = targets(arms, config)
    built = {GATEWAY: gateway_app}
    try:
        serve.run_many(
            [
                serve.RunTarget(
                    built.get(name, model_app)(args), name, "/" if name == GATEWAY else None
                )
                for name, _, args in apps
            ],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        yield
    finally:
        if was_there:
            for name, _, _ in apps:
                serve.delete(name)
        else:
            serve.shutdown()


@contextmanager
def stop_signals() -> Generator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM, which `ray job stop` sends, set."""
    stopped = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
