"""Serving: a set of reward models, each a Serve application, behind one gateway.

    models ─ resolved here ─┬─ NAME-model-A: replicas (one queue and one model each)
                            ├─ NAME-model-B: replicas
                            └─ NAME-gateway: every client's dialect, the page, metrics

Applications of their own let a model fail, change and go without the others. All carry the server's
name: on a cluster with other servers, it neither replaces nor removes what it did not make.
"""

from __future__ import annotations

import logging
import math
import secrets
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application

from actors.gateway import ModelState
from panoply.config.serve import ServeConfig, ServedModelConfig, exposure
from panoply.report.progress import RunLogger
from panoply.scorers.where import local_models
from panoply.secret import NO_KEYS, Keys
from panoply.serve.access import KeyRing
from panoply.serve.local_server import joinable
from workflows import starts_cluster
from workflows.cluster.address import answering, reserved, url
from workflows.cluster.gateway import (
    GONE,
    POLL_SECONDS,
    SETTLED_SECONDS,
    gateway_app_with_keys,
    gateway_name,
    model_name,
    model_states,
    read_args,
    version_of,
)
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.models import model_app_with_keys, shared_app
from workflows.cluster.ray_cluster import connect
from workflows.cluster.resolve_model import check_logs, resolve_model
from workflows.cluster.shared import backbone_args, describe, places_of
from workflows.cluster.tenancy import (
    check_alive,
    holding,
    serve_controller,
    serve_details,
    take_down,
)
from workflows.cluster.versions import Routes, ServerDescription, named_after

SHARED_APP = "workflows.cluster.models:shared_app"
"""Builder of the application of a backbone that models share."""
THE_GATEWAY = "the gateway"
"""Name of the gateway in the log, which no model can have."""
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was deployed, and its addresses."""

    name: str
    models: tuple[str, ...]
    """Names of its models."""
    urls: tuple[str, ...]
    """Addresses at which it should answer."""
    run: str
    """Id of this start, which tells its answers from those of other servers."""


def run_serve(config: ServeConfig, logger: RunLogger) -> None:
    """Serves models until it is stopped, then takes them down.

    Raises:
        ValueError, OSError: a model cannot be served, or the port or name is taken, and nothing was
            started; or somebody else took the gateway down.
        RuntimeError: no model could be started.
    """
    models = [resolve_model(model, is_served=True) for model in config.served_models()]
    check_logs(models)
    if config.write:
        Path(config.write).write_text(yaml.safe_dump(serve_file(models, config), sort_keys=False))
        logger.info(f"wrote {config.write}; next: serve deploy {config.write}")
        return
    variables = [*config.key_variables(), *endpoint_variables(models)]
    keys = handed_keys(variables)
    with ExitStack() as stack:
        if starts_cluster():
            KeyRing(config.key_places())
            config = replace(config, port=stack.enter_context(reserved(config.host, config.port)))
        # Ray only counts these CPUs; as many again are for the new versions of an upgrade.
        connect(math.ceil(2 * sum(map(_cpus, models))), variables)
        if config.share_backbone:
            for line in describe(models, places_of(models, config)):
                logger.info(line)
        if starts_cluster():
            address = ray.get_runtime_context().gcs_address
            stack.enter_context(joinable(config.port, address))
        stopped = stack.enter_context(stop_signals())
        if warning := exposure(config):
            logger.info(warning)
        follow(stack.enter_context(deployed(models, config, keys)), stopped, logger)


def _cpus(scorer: ServedModelConfig) -> float:
    """Returns the CPUs of a scorer: of each reward model where it is a composite of several."""
    num_models = max(1, len(local_models(scorer)))
    return num_models * scorer.scaling.cpus * scorer.scaling.max_replicas


def follow(server: Server, stopped: threading.Event, logger: RunLogger) -> None:
    """Logs every change of a model's or the gateway's state, until it is stopped.

    Raises:
        ConnectionError: Ray, Ray Serve or the gateway is gone, or somebody else answers in its
            place.
        RuntimeError: no model could be started.
    """
    current: dict[str, tuple[ModelState, str]] = {}
    apps: dict[str, str] = {}
    was_up, settled, address = False, False, ""
    while not stopped.wait(SETTLED_SECONDS if settled else POLL_SECONDS):
        check_alive()
        try:
            details = serve_details()
            routes = Routes.read(server.name, server.models, details).current
            if moved := [name for name in routes if name in apps and routes[name] != apps[name]]:
                logger.info("; ".join(f"{n}: version {version_of(routes[n])}" for n in moved))
            apps = {**routes, THE_GATEWAY: gateway_name(server.name)}
            before, current = current, model_states(apps, details)
        except (RayActorError, LookupError) as error:
            if serve_controller() is not None:  # it died, and Ray is about to restart it
                continue
            raise ConnectionError("somebody else shut Ray Serve down on this cluster") from error
        for name, (state, reason) in current.items():
            if before.get(name) != (state, reason):
                logger.info(f"{name}: {state}: {reason}" if reason else f"{name}: {state}")
        state, reason = current[THE_GATEWAY]
        if state == "failed":
            _check_gateway(apps[THE_GATEWAY], reason, was_up)
        was_up = was_up or state == "ready"
        if all(current[name][0] == "failed" for name in routes):
            raise RuntimeError("no model could be started: see above")
        # The address is shown once all models have loaded or failed.
        settled = all(model_state != "starting" for model_state, _ in current.values())
        if not address and state == "ready" and settled:
            address = answering(server.urls, server.run)
            logger.info(f"Serving at {address} (UI), {address}docs (API)")
            logger.end_stages()


def _check_gateway(app: str, reason: str, was_up: bool) -> None:
    """Checks that a gateway's failure passes: Serve restarts a replica.

    Raises:
        ConnectionError: it never started, or was taken down.
    """
    if not was_up:
        raise ConnectionError(f"the gateway could not be started: {reason}")
    if reason == GONE:
        raise ConnectionError(f"the gateway is gone: {reason}. Somebody else took {app!r} down")


def targets(
    models: Sequence[ServedModelConfig], config: ServeConfig, run: str = ""
) -> list[tuple[str, str, Any]]:
    """Returns name, import path and arguments of every application, the gateway's last."""
    builder = "workflows.cluster.models:model_app"
    places = places_of(models, config)
    apps: list[tuple[str, str, Any]] = [
        (model_name(config.name, model.name), builder, asdict(model))
        for model in models
        if model.name not in places
    ]
    for name, shared in backbone_args(models, config, places).items():
        apps.append((name, SHARED_APP, shared))
    args = asdict(config.gateway) | {
        "name": config.name,
        "models": [model.name for model in models],
        "keys": {name: list(places) for name, places in config.key_places().items()},
    }
    if places:
        args["places"] = places
    if run:
        args["run"] = run
    return [*apps, (gateway_name(config.name), "workflows.cluster.gateway:gateway_app", args)]


def serve_file(models: Sequence[ServedModelConfig], config: ServeConfig) -> dict[str, Any]:
    """Returns the file for `serve deploy`, with every setting of every model."""
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
            for name, path, args in targets(models, config)
        ],
    }


@contextmanager
def deployed(
    models: Sequence[ServedModelConfig], config: ServeConfig, keys: Keys = NO_KEYS
) -> Generator[Server]:
    """Starts the applications, and takes down at the end what it and upgrades started.

    Args:
        models: their settings, resolved.
        config: settings of the server.
        keys: API keys, where the nodes' environment lacks them.

    Raises:
        ValueError, OSError: somebody else has the name, the path or the port; nothing was deployed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    run = secrets.token_hex(8)
    apps = targets(models, config, run)
    gateway_args = apps[-1][2]
    admission = keys.only(config.key_variables())
    description = ServerDescription(
        models=tuple(models),
        gateway=gateway_args,
        route=config.route,
        keys=admission,
        backbones={name: args for name, builder, args in apps if builder == SHARED_APP},
    )
    with holding(f"server-{config.name}", "take another `--name`", description):
        started = serve_controller() is None
        if started:
            if not starts_cluster():  # else it is reserved since before the cluster was started
                with reserved(config.host, config.port) as port:
                    config = replace(config, port=port)
            serve.start(http_options={"host": config.host, "port": config.port})
        details = serve_details()
        config = admitted(config, details)
        for name in named_after(config.name, details["applications"]):
            serve.delete(name)  # left by a driver that was killed: nobody holds its name
        places = gateway_args.get("places", {})
        first = {model.name: model_name(config.name, model.name) for model in models} | places
        # Upgrades read the routes there; those of applications of their own go by their names.
        routes = {"routes": first, "latest": {}} if places else None
        gateway = serve.RunTarget(
            gateway_app_with_keys(gateway_args, admission, routes),
            gateway_name(config.name),
            config.route,
        )
        replicas = [
            serve.RunTarget(_application(builder, args, keys), name, None)
            for name, builder, args in apps[:-1]
        ]
        try:
            serve.run_many(
                [*replicas, gateway],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            names = tuple(model.name for model in models)
            yield Server(config.name, names, urls(config, details), run)
        finally:
            take_down(lambda app: bool(named_after(config.name, [app])), started=started)


def _application(builder: str, args: Mapping[str, Any], keys: Keys) -> Application:
    """Returns the application of a model, or of a backbone with the models on it."""
    if builder == SHARED_APP:
        return shared_app(args)
    scorer = read_args(ServedModelConfig, args)
    return model_app_with_keys(args, keys.only(endpoint_variables([scorer])))


def admitted(config: ServeConfig, details: Mapping[str, Any]) -> ServeConfig:
    """Returns the configuration with Ray Serve's port, one for all applications of a cluster.

    Args:
        config: with port 0 where any will do.
        details: Ray Serve's description of itself.

    Raises:
        ValueError: its applications or its port leave no room for this server.
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
