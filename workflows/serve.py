"""Serving: a set of reward models, each a Serve application, behind one gateway.

    models ─ pinned and checked here ─┬─ model-A: judges (one queue and one model each)
                                      ├─ model-B: judges
                                      └─ gateway: every client's dialect, the page, metrics

Applications of their own let a model fail, change and go without the others.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow.artifacts
import ray
import yaml
from fastapi import FastAPI
from mlflow import MlflowClient
from pydantic import TypeAdapter
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from actors.arm_judge import ArmJudge, arm_of
from actors.gateway import Gateway, Model, State
from actors.http import make_app
from actors.judge import ModelJudge
from panoply.serve.config import ArmConfig, GatewayConfig, ServeConfig
from panoply.wire.endpoint import Limits
from workflows.cluster import connect, store_root
from workflows.progress import Watch

GATEWAY = "gateway"
PREFIX = "model-"
JUDGE = "Judge"
REGISTRY = "models:/"
ROUTER = "actors.affinity.PromptAffinity"
MOST_CALLS = 1024
"""Calls that a replica has in hand; its own queue is what turns requests away."""
TRIES = 2
"""Loading a model that failed fails again, mostly."""
POLL_SECONDS = 1.0


def model_app(args: Mapping[str, Any]) -> Application:
    """Returns the application of one model, from the fields of an `ArmConfig`."""
    arm = TypeAdapter(ArmConfig).validate_python(args)
    scaling = arm.scaling
    fixed = scaling.min_replicas == scaling.max_replicas
    replicas: dict[str, Any] = {"num_replicas": scaling.max_replicas}
    if not fixed:
        replicas = {
            "autoscaling_config": {
                "min_replicas": scaling.min_replicas,
                "max_replicas": scaling.max_replicas,
                "target_ongoing_requests": scaling.target_requests,
                "downscale_delay_s": scaling.idle_seconds,
                "upscale_delay_s": 1.0,
            }
        }
    deployment = serve.deployment(
        name=JUDGE,
        max_ongoing_requests=MOST_CALLS,
        max_queued_requests=4 * MOST_CALLS,
        max_constructor_retry_count=TRIES,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": ROUTER}),
        logging_config={"enable_access_log": False},
        **replicas,
    )
    judge = ModelJudge if arm.kind == "model" else ArmJudge
    return deployment(judge).bind(arm)


def gateway_app(args: Mapping[str, Any]) -> Application:
    """Returns the application of the gateway, from `models` and `gateway` (see the configs)."""
    arms = TypeAdapter(tuple[ArmConfig, ...]).validate_python(args["models"])
    config = TypeAdapter(GatewayConfig).validate_python(args["gateway"])
    deployment = serve.deployment(
        name="Gateway",
        num_replicas=config.replicas,
        max_ongoing_requests=4 * MOST_CALLS,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )

    def build() -> FastAPI:  # Serve takes a function, and no partial of one
        return http_gateway(arms, config)

    return deployment(serve.ingress(build)()).bind()


def http_gateway(arms: Sequence[ArmConfig], config: GatewayConfig) -> FastAPI:
    """Returns the HTTP application that runs in a gateway's replica."""
    models: dict[str, Model] = {}
    for arm in arms:
        handle = serve.get_deployment_handle(JUDGE, app_name=PREFIX + arm.name)
        models[arm.name] = Model(ask=handle.answer.remote, about=handle.about.remote)
    gateway = Gateway(models, config.default or arms[0].name, config.timeout)

    @asynccontextmanager
    async def watching(_: FastAPI) -> AsyncGenerator[None]:
        async def watch() -> None:
            while True:
                await gateway.learn(await asyncio.to_thread(states, [arm.name for arm in arms]))
                await asyncio.sleep(POLL_SECONDS)

        task = asyncio.create_task(watch())
        yield
        task.cancel()

    limits = Limits(max_bytes=config.max_bytes, max_responses=config.max_responses)
    keys = {arm.name: secret(arm.key_variable) for arm in arms if arm.key_variable}
    return make_app(gateway, limits, keys, partial(asyncio.to_thread, agents), watching)


def secret(variable: str) -> str:
    """Returns an API key from the environment of this node.

    Raises:
        ValueError: the variable is not set, so nobody could ever ask this model.
    """
    if not os.environ.get(variable):
        raise ValueError(f"environment variable {variable!r} holds no API key: set it on the nodes")
    return os.environ[variable]


def states(names: Sequence[str]) -> dict[str, tuple[State, str]]:
    """Returns how the models are doing, and why those that failed did."""
    known = serve.status().applications
    found: dict[str, tuple[State, str]] = {}
    for name in names:
        app = known.get(PREFIX + name)
        if app is None:
            found[name] = ("failed", "its application was deleted")
            continue
        status, replicas = app.status, app.deployments.get(JUDGE)
        by_state = replicas.replica_states if replicas else {}
        running = sum(count for state, count in by_state.items() if state == "RUNNING")
        if status == "DEPLOY_FAILED" or (status == "UNHEALTHY" and not running):
            found[name] = ("failed", _cause((replicas.message if replicas else "") or app.message))
        elif status == "RUNNING":
            found[name] = ("ready" if running else "idle", "")
        else:
            found[name] = ("ready" if running else "starting", "")
    return found


def _cause(message: str) -> str:
    """Returns the error at the end of Serve's message, which holds a traceback of tracebacks."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "for a reason that Serve does not tell"


def agents() -> list[str]:
    """Returns where the nodes tell their metrics."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


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
    return replace(arm, where=str(folder.absolute())) if folder.is_dir() else arm


def registered(uri: str) -> str:
    """Returns the folder of a model in MLflow's registry, `models:/NAME@ALIAS` or `/VERSION`.

    The alias is read once, here: moved later, it changes no server that runs. What is no folder
    that this machine sees is copied below `PANOPLY_STORE`, which all nodes share.
    """
    name, _, alias = uri.removeprefix(REGISTRY).partition("@")
    client = MlflowClient()
    if alias:
        version = client.get_model_version_by_alias(name, alias).version
    else:
        name, _, version = name.partition("/")
    source = client.get_model_version_download_uri(name, str(version))
    local = Path(source.removeprefix("file://"))
    if local.is_dir():
        return str(local)
    folder = Path(store_root("")) / "models" / f"{name}-{version}"
    if not folder.is_dir():
        partial = folder.with_suffix(".part")
        mlflow.artifacts.download_artifacts(source, dst_path=str(partial))
        next(partial.glob("**/panoply.json")).parent.rename(folder)
    return str(folder)


def targets(arms: Sequence[ArmConfig], config: ServeConfig) -> list[tuple[str, str, Any]]:
    """Returns name, import path and arguments of every application."""
    models = [(PREFIX + arm.name, "workflows.serve:model_app", asdict(arm)) for arm in arms]
    asked = {"models": [asdict(arm) for arm in arms], "gateway": asdict(config.gateway)}
    return [*models, (GATEWAY, "workflows.serve:gateway_app", asked)]


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
