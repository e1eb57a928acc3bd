"""Serve application of the gateway, and the states of the models behind it.

It is a file of its own since a gateway's replica imports what this file does: no torch, no model.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from actors.gateway import Gateway, Model, ModelState, ModelStatus
from actors.http import make_app
from actors.intake import Intake
from panoply.config.serve import GatewayArgs
from panoply.data.schema import digest
from panoply.secret import NO_KEYS, Keys, without_secrets
from panoply.serve.access import KeyRing, RateLimits
from panoply.serve.supervised import SupervisedLoop
from panoply.wire.limits import RequestLimits
from workflows.cluster.tenancy import serve_details

T = TypeVar("T")
DEPLOYMENT = "RewardModel"
"""Name of the deployment of any model, in the application that carries the model's name."""
MOST_CALLS = 1024
"""Maximum requests in progress per replica; its own queue turns requests away before that."""
GATEWAY = "Gateway"
"""Name of the deployment of a gateway."""
POLL_SECONDS = 1.0
"""Pause between two looks at the models' states while one of them is changing."""
SETTLED_SECONDS = 5.0
"""The same while all are up: every look is work for Ray Serve's controller as well."""
POLL_DEADLINE = 10.0
"""Seconds in which the cluster says how its models are."""
TRIES = 2
"""Attempts to load a model: what failed mostly fails again."""
GONE = "its application is not there"


def gateway_name(server: str) -> str:
    """Returns the name of the gateway's application, which carries that of its server."""
    return f"{server}-gateway"


def model_name(server: str, model: str, version: int = 1) -> str:
    """Returns the name of a model's application, which carries that of its server."""
    return f"{server}-model-{model}" + (f"@{version}" if version > 1 else "")


def backbone_name(server: str, key: str) -> str:
    """Returns the name of the application of a backbone that models share."""
    return f"{server}-backbone-{key}"


def place_on(app: str, model: str, version: int = 1) -> str:
    """Returns the place of a model on a shared backbone: APPLICATION/MEMBER."""
    return f"{app}/{model}" + (f"@{version}" if version > 1 else "")


def handle_at(place: str) -> tuple[DeploymentHandle[Any], dict[str, str]]:
    """Returns the handle of a model's replicas, and the keywords that name it where it is a member.

    Args:
        place: name of the model's application, or APPLICATION/MEMBER.
    """
    app, _, member = place.partition("/")
    # Not `get_deployment_handle`: `serve deploy` may start the gateway before the models.
    return DeploymentHandle(DEPLOYMENT, app), {"member": member} if member else {}


def version_of(place: str) -> int:
    """Returns the version in the place of a model."""
    _, _, version = place.partition("@")
    return int(version or 1)


def read_args(kind: type[T], args: Mapping[str, Any]) -> T:
    """Returns the arguments of an application, checked.

    Raises:
        ValueError: a setting is unknown or wrong; in one line, since Serve's message of a failed
            application ends with a traceback.
    """
    try:
        return TypeAdapter(kind).validate_python(args)
    except ValidationError as error:
        faults: list[str] = []
        for fault in error.errors():
            name = ".".join(map(str, fault["loc"]))
            faults.append(f"{name}: {fault['msg']}" if name else fault["msg"])
        raise ValueError("; ".join(faults)) from None


class GatewayReplica:
    """A gateway's replica, whose routes change between two requests."""

    app: FastAPI

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Sends the next requests for each model to the application that `routes` names."""
        await self.app.state.reroute(config["routes"])


def gateway_app(args: Mapping[str, Any]) -> Application:
    """Returns the application of the gateway for a deploy file, whose builders take one parameter.

    Raises:
        ValueError: a setting is wrong: a key or the default names no model of the server.
    """
    return gateway_app_with_keys(args, NO_KEYS)


def gateway_app_with_keys(
    args: Mapping[str, Any], keys: Keys, user_config: Mapping[str, Any] | None = None
) -> Application:
    """Returns the application of the gateway, from the fields of a `GatewayArgs`.

    Deployed again with other routes, the same replicas take them over and lose no request.

    Args:
        args: the fields.
        keys: API keys that clients send, where the nodes' environment lacks them.
        user_config: `routes`, the names of the models' applications, where an upgrade changed them.

    Raises:
        ValueError: a setting is wrong: a key or the default names no model of the server.
    """
    config = read_args(GatewayArgs, args)
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=config.replicas,
        max_ongoing_requests=4 * MOST_CALLS,
        max_constructor_retry_count=TRIES,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
        user_config=dict(user_config) if user_config else None,
    )

    def build() -> FastAPI:  # Serve takes a function, and no partial of one
        keys.export()
        return http_gateway(config)

    deployed = deployment(serve.ingress(build)(GatewayReplica))
    # Ray Serve replaces replicas of another version, and makes one up where none is set: by this,
    # other routes leave the replicas.
    deployed._version = digest(json.dumps(dict(args), sort_keys=True, default=list))  # pyright: ignore[reportPrivateUsage]
    return deployed.bind()


def http_gateway(config: GatewayArgs) -> FastAPI:
    """Returns the HTTP application that runs in a gateway's replica."""
    apps = {name: model_name(config.name, name) for name in config.models}
    apps.update(config.places)
    models = {name: _model(app) for name, app in apps.items()}
    gateway = Gateway(models, config.default or config.models[0], config.timeout)
    keys = KeyRing(config.keys)

    polled = -math.inf

    async def poll() -> None:
        nonlocal polled
        now = time.monotonic()
        if gateway.is_settled and now - polled < SETTLED_SECONDS:
            return
        polled = now
        await gateway.learn(await asyncio.to_thread(model_statuses, dict(apps)))

    async def reload() -> None:
        await asyncio.to_thread(keys.reload)

    loops = [
        SupervisedLoop(name="states", work=poll, pause=POLL_SECONDS, deadline=POLL_DEADLINE),
        SupervisedLoop(name="keys", work=reload, pause=POLL_SECONDS, deadline=POLL_DEADLINE),
    ]

    async def reroute(routes: Mapping[str, str]) -> None:
        for name in apps.keys() - routes.keys():
            del apps[name], models[name]
        for name, app in routes.items():
            if apps.get(name) != app:
                model = _model(app)
                model.state = "ready"  # it was asked before the switch
                await model.describe(name)  # where it does not answer now, the next poll asks again
                apps[name], models[name] = app, model

    @asynccontextmanager
    async def watching(_: FastAPI) -> AsyncGenerator[None]:
        with ExitStack() as stack:
            for loop in loops:
                stack.enter_context(loop.running())
            yield

    intake = Intake(
        limits=RequestLimits(max_bytes=config.max_bytes, max_responses=config.max_responses),
        keys=keys,
        rates=RateLimits(config.rate / config.replicas),
        hosts=frozenset(config.hosts),
        is_closed=set(config.models) <= keys.protected,
    )
    agents_of = partial(asyncio.to_thread, agents)
    app = make_app(gateway, intake, agents_of, watching, loops, run=config.run)
    app.state.reroute = reroute
    return app


def _model(place: str) -> Model:
    """Returns the model at a place."""
    handle, member = handle_at(place)
    return Model(
        ask=partial(handle.answer.remote, **member),
        about=partial(handle.about.remote, **member),
        learn=partial(handle.feedback.remote, **member),
        version=version_of(place),
    )


def model_states(
    apps: Mapping[str, str], details: Mapping[str, Any] | None = None
) -> dict[str, tuple[ModelState, str]]:
    """Returns the states of applications, with the reasons of those that failed.

    Args:
        apps: their names, by the names to use in the answer.
        details: description of Ray Serve; None asks it.
    """
    statuses = model_statuses(apps, details)
    return {name: (status.state, status.reason) for name, status in statuses.items()}


def model_statuses(
    apps: Mapping[str, str], details: Mapping[str, Any] | None = None
) -> dict[str, ModelStatus]:
    """Returns the states of applications, with the reasons of those that failed.

    Args:
        apps: their names or places, by the names to use in the answer.
        details: description of Ray Serve; None asks it.
    """
    # As it comes: Ray's class around it pickles every deployment's router whenever one is made.
    running_apps = (serve_details() if details is None else details)["applications"]
    statuses: dict[str, ModelStatus] = {}
    for name, app_name in apps.items():
        app = running_apps.get(app_name.partition("/")[0])
        if app is None:
            statuses[name] = ModelStatus("failed", GONE)
            continue
        # A composite's models are further deployments of its application.
        deployments, status = app["deployments"], app["status"]
        first = next(iter(deployments.values()), {"replicas": []})
        replicas = deployments.get(DEPLOYMENT, first)["replicas"]
        running = sum(replica["state"] == "RUNNING" for replica in replicas)
        deployed = f"{app['last_deployed_time_s']} {status}"
        if status == "DEPLOY_FAILED" or (status == "UNHEALTHY" and not running):
            messages = [part["message"] for part in deployments.values() if part["message"]]
            reason = cause(messages[0] if messages else app["message"])
            statuses[name] = ModelStatus("failed", reason, deployed)
        elif running:
            statuses[name] = ModelStatus("ready", "", deployed)
        else:
            state = "idle" if status == "RUNNING" else "starting"
            statuses[name] = ModelStatus(state, "", deployed)
    return statuses


def cause(message: str) -> str:
    """Returns the error at the end of Serve's message, behind a traceback of tracebacks."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return without_secrets(lines[-1]) if lines else "for a reason that Ray Serve does not give"


def agents() -> list[str]:
    """Returns the addresses of the nodes' metrics."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]
