"""Serving: a set of reward models, each a Serve application, behind one gateway.

    models ─ pinned and checked here ─┬─ NAME-model-A: judges (one queue and one model each)
                                      ├─ NAME-model-B: judges
                                      └─ NAME-gateway: every client's dialect, the page, metrics

Applications of their own let a model fail, change and go without the others. All carry the server's
name: on a cluster with other servers, it neither replaces nor removes what it did not make.
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import signal
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from ray import serve
from ray.exceptions import RayActorError

from actors.function_replica import arm_of
from actors.gateway import ModelState
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.hub.published.loading import is_hub_name
from panoply.report.progress import RunLogger
from workflows import starts_cluster
from workflows.cluster.address import answering, reserved, url
from workflows.cluster.gateway import (
    GONE,
    POLL_SECONDS,
    gateway_app,
    gateway_name,
    model_name,
    secret,
    states,
)
from workflows.cluster.models import model_app
from workflows.cluster.ray_cluster import connect, store_root
from workflows.cluster.tenancy import holding, serve_controller, serve_details, take_down

THE_GATEWAY = "the gateway"
"""What it is called in a log, which no model can be."""
EVERYWHERE = ("0.0.0.0", "::")
REGISTRY = "models:/"


@dataclass(frozen=True, slots=True)
class Server:
    """What was deployed, and where it answers."""

    apps: Mapping[str, str]
    """Names of the models' applications, by those of the models."""
    gateway: str
    """Name of the gateway's application."""
    urls: tuple[str, ...]
    """Addresses at which it should answer."""
    run: str
    """Id of this start, which tells its answers from those of others."""


def run_serve(config: ServeConfig, logger: RunLogger) -> None:
    """Serves models until it is stopped, then takes them down.

    Raises:
        ValueError, OSError: a model cannot be served, or something else has the port or the name;
            nothing was started. Or the gateway was taken down by somebody else.
        RuntimeError: no model could be started.
    """
    arms = tuple(pinned(arm) for arm in config.arms())
    if config.write:
        Path(config.write).write_text(yaml.safe_dump(serve_file(arms, config), sort_keys=False))
        logger.info(f"wrote {config.write}; next: serve deploy {config.write}")
        return
    with ExitStack() as stack:
        if starts_cluster():
            for variable in config.key_variables().values():
                secret(variable)
            config = replace(config, port=stack.enter_context(reserved(config.host, config.port)))
        connect(math.ceil(sum(arm.scaling.cpus * arm.scaling.max_replicas for arm in arms)))
        stopped = stack.enter_context(stop_signals())
        follow(stack.enter_context(deployed(arms, config)), stopped, logger)


def follow(server: Server, stopped: threading.Event, logger: RunLogger) -> None:
    """Tells how models and gateway are doing, until it is stopped.

    Raises:
        ConnectionError: the gateway or Ray Serve is gone, or somebody else answers in its place.
        RuntimeError: no model could be started.
    """
    known: dict[str, tuple[ModelState, str]] = {}
    apps = {**server.apps, THE_GATEWAY: server.gateway}
    was_up, address = False, ""
    while not stopped.wait(POLL_SECONDS):
        try:
            before, known = known, states(apps)
        except RayActorError as error:
            if serve_controller() is not None:  # it is about to come back
                continue
            raise ConnectionError("somebody else shut Ray Serve down on this cluster") from error
        for name, (state, reason) in known.items():
            if before.get(name) != (state, reason):
                logger.info(f"{name}: {state}{': ' * bool(reason)}{reason}")
        state, reason = known[THE_GATEWAY]
        if state == "failed" and (reason == GONE or not was_up):
            raise ConnectionError(
                f"the gateway is gone: {reason}. Somebody else took {server.gateway!r} down"
                if was_up
                else f"the gateway could not be started: {reason}"
            )
        was_up = was_up or state == "ready"
        if all(known[name][0] == "failed" for name in server.apps):
            raise RuntimeError("no model could be started: see above")
        if not address and state == "ready" and is_settled(known):
            address = answering(server.urls, server.run)
            logger.info(f"{address} has the page, {address}docs the endpoints")


def is_settled(known: Mapping[str, tuple[ModelState, str]]) -> bool:
    """Whether no model is on its way."""
    return all(state != "starting" for state, _ in known.values())


def pinned(arm: ServedModelConfig) -> ServedModelConfig:
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


def targets(
    arms: Sequence[ServedModelConfig], config: ServeConfig, run: str = ""
) -> list[tuple[str, str, Any]]:
    """Returns name, import path and arguments of every application, the gateway's last."""
    models = [
        (model_name(config.name, arm.name), "workflows.cluster.models:model_app", asdict(arm))
        for arm in arms
    ]
    args = asdict(config.gateway) | {
        "name": config.name,
        "models": [arm.name for arm in arms],
        "keys": config.key_variables(),
    }
    args |= {"run": run} if run else {}
    return [*models, (gateway_name(config.name), "workflows.cluster.gateway:gateway_app", args)]


def serve_file(arms: Sequence[ServedModelConfig], config: ServeConfig) -> dict[str, Any]:
    """Returns what `serve deploy` reads: every setting of every model, to be changed there."""
    gateway = gateway_name(config.name)
    return {
        "http_options": {"host": config.host, "port": config.port},
        "applications": [
            {
                "name": name,
                "route_prefix": config.route if name == gateway else None,
                "import_path": path,
                "args": args,
            }
            for name, path, args in targets(arms, config)
        ],
    }


@contextmanager
def deployed(arms: Sequence[ServedModelConfig], config: ServeConfig) -> Generator[Server]:
    """Starts the applications; takes down what it started at the end.

    Raises:
        ValueError, OSError: somebody else has the name, the path or the port; nothing was deployed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    run = secrets.token_hex(8)
    with holding(f"server-{config.name}", "take another `--name`"):
        started = serve_controller() is None
        if started:
            if not starts_cluster():  # else it is reserved since before the cluster was started
                with reserved(config.host, config.port) as port:
                    config = replace(config, port=port)
            serve.start(http_options={"host": config.host, "port": config.port})
        details = serve_details()
        config = admitted(config, details)
        for name in named_after(config.name, details["applications"]):
            serve.delete(name)  # of a driver that was killed: nobody holds its name
        apps = targets(arms, config, run)
        gateway = gateway_name(config.name)
        try:
            serve.run_many(
                [
                    serve.RunTarget(gateway_app(args), name, config.route)
                    if name == gateway
                    else serve.RunTarget(model_app(args), name, None)
                    for name, _, args in apps
                ],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            models = {arm.name: model_name(config.name, arm.name) for arm in arms}
            yield Server(models, gateway, urls(config, details), run)
        finally:
            take_down([name for name, _, _ in apps], started=started)


def admitted(config: ServeConfig, details: Mapping[str, Any]) -> ServeConfig:
    """Returns the configuration with the port of Ray Serve, which has one for all applications.

    Args:
        config: with port 0 where any will do.
        details: what Ray Serve says of itself.

    Raises:
        ValueError: its applications or its port are in the way.
    """
    if details["proxy_location"] == "Disabled":
        raise ValueError(
            "Ray Serve runs on this cluster without HTTP, as a run of jobs.laser starts it: serve "
            "when that is over, or start the server first"
        )
    http = details["http_options"]
    host, port = http["host"], http["port"]
    if (config.host, config.port or port) != (host, port):
        raise ValueError(
            f"Ray Serve listens at {host}:{port} of this cluster, for all its applications: "
            f"{config.host}:{config.port} cannot be had. Add `--host {host} --port {port}`"
        )
    apps = details["applications"]
    for name in named_after(config.name, apps):
        if apps[name]["source"] == "declarative":
            raise ValueError(
                f"{name!r} was deployed on this cluster from a file: take another `--name`, or "
                "change that file"
            )
    for name in set(apps) - set(named_after(config.name, apps)):
        if apps[name]["route_prefix"] == config.route:
            raise ValueError(
                f"{name!r} answers at {config.route} of this cluster: take another `--name`, "
                "which gives the server a path of its own"
            )
    return replace(config, port=port)


def named_after(server: str, apps: Iterable[str]) -> list[str]:
    """Returns those of some applications that belong to a server."""
    models, gateway = model_name(server, ""), gateway_name(server)
    return [name for name in apps if name == gateway or name.startswith(models)]


def urls(config: ServeConfig, details: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the addresses at which the server should answer."""
    nodes = [proxy["node_ip"] for proxy in details["proxies"].values()]
    hosts = nodes if config.host in EVERYWHERE else [config.host]
    return tuple(url(host, config.port, config.route) for host in hosts)


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
