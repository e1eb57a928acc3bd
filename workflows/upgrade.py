"""Upgrade of a server that runs, without a failed request; and the way back.

    deploy beside ─ wait until it is loaded ─ ask it ─ switch the gateway ─ keep the old one

What fails before the switch removes the new version, and the old one never stopped answering.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from ray import serve

from panoply.config.serve import ServedModelConfig
from panoply.config.upgrade import RollbackConfig, UpgradeConfig
from panoply.hub.example_conversations import EXAMPLE_CONVERSATIONS
from panoply.report.progress import RunLogger
from panoply.secret import NO_KEYS
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Chat, ModelAnswer, RequestError
from workflows.cluster.gateway import (
    DEPLOYMENT,
    POLL_SECONDS,
    gateway_app_with_keys,
    gateway_name,
    model_name,
    model_states,
    version_of,
)
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.models import model_app_with_keys
from workflows.cluster.ray_cluster import connect, is_on_loopback
from workflows.cluster.resolve_model import resolve_model
from workflows.cluster.tenancy import described, holding, serve_details
from workflows.cluster.versions import Routes, ServerDescription

CHECK_SECONDS = 60.0
"""Time limit for the scores by which versions are checked."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that runs, and where its requests go."""

    name: str
    description: ServerDescription
    routes: Routes


def run_upgrade(config: UpgradeConfig, logger: RunLogger) -> None:
    """Deploys new versions of models beside the old ones, checks them, and switches to them.

    Raises:
        ValueError, OSError: there is no such server or model, or a new version cannot be loaded, or
            gives no score where the old one does. The old versions answer as before.
    """
    new = [resolve_model(model, is_served=True) for model in config.served_models()]
    with running_server(config.name) as server:
        models = {model.name: model for model in server.description.models}
        _check_names([model.name for model in new], models)
        changes: dict[str, str] = {}
        versions: dict[str, ServedModelConfig] = {}
        for model in new:
            number = server.routes.latest[model.name] + 1
            app = changes[model.name] = model_name(config.name, model.name, number)
            versions[app] = replace(
                models[model.name],
                where=model.where,
                trust_remote_code=config.trust_remote_code,
            )
            if model.name in server.routes.others:
                serve.delete(server.routes.others[model.name])
        try:
            _deploy(versions)
            _await_loaded({app: app for app in versions}, config.minutes, logger)
            for name, app in changes.items():
                _check_scores(name, server.routes.current[name], app)
            _switch(server, server.routes.moved(changes))
        except BaseException:
            if not set(versions) & set(_routes(server).current.values()):
                for app in versions:
                    serve.delete(app)
            raise
    for name, app in changes.items():
        logger.info(f"{name}: version {version_of(app)} answers")
    logger.info("the way back: python -m jobs.serve rollback, with the same `--name` and `--port`")


def run_rollback(config: RollbackConfig, logger: RunLogger) -> None:
    """Switches models back to the version before.

    Raises:
        ValueError: there is no such server or model, or no other version that answers.
    """
    with running_server(config.name) as server:
        others = server.routes.answered
        _check_names(config.models, [model.name for model in server.description.models])
        missing = sorted(set(config.models) - set(others))
        if missing or not others:
            raise ValueError(
                f"no other version of {missing or 'any model'} runs: there is one after an "
                "upgrade, until the server stops"
            )
        changes = {name: others[name] for name in config.models or others}
        for name, (state, reason) in model_states(changes).items():
            if state not in ("ready", "idle"):
                raise ValueError(f"the other version of {name!r} is {state}: {reason or 'wait'}")
        _switch(server, server.routes.moved(changes))
    for name, app in changes.items():
        logger.info(f"{name}: version {version_of(app)} answers")


@contextmanager
def running_server(name: str) -> Generator[RunningServer]:
    """Yields a server of the cluster, which nobody else changes meanwhile.

    Raises:
        ValueError: there is no such server, or somebody changes it.
    """
    connect(1)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with holding(f"upgrade-{name}", "wait until that upgrade is over"):
        description = described(f"server-{name}")
        if description is None:
            raise ValueError(
                f"no server {name!r} of `python -m jobs.serve models` runs on this cluster: take "
                "another `--name`. One that `serve deploy` started is changed by its file"
            )
        models = [model.name for model in description.models]
        yield RunningServer(name, description, Routes.read(name, models, serve_details()))


def _routes(server: RunningServer) -> Routes:
    """Returns the routes as they are now."""
    models = [model.name for model in server.description.models]
    return Routes.read(server.name, models, serve_details())


def _check_names(names: Sequence[str], models: Collection[str]) -> None:
    unknown = sorted(set(names) - set(models))
    if unknown:
        raise ValueError(f"`models` must be names among {sorted(models)}, got {unknown}")


def _deploy(versions: Mapping[str, ServedModelConfig]) -> None:
    """Starts applications, by their names, and waits for none of them."""
    keys = handed_keys(endpoint_variables(list(versions.values()))) if is_on_loopback() else NO_KEYS
    serve.run_many(
        [
            serve.RunTarget(model_app_with_keys(asdict(model), keys), app, route_prefix=None)
            for app, model in versions.items()
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _await_loaded(apps: Mapping[str, str], minutes: float, logger: RunLogger) -> None:
    """Waits until applications have loaded.

    Raises:
        ValueError: one cannot be loaded.
        TimeoutError: they take too long, as where no node has room.
    """
    ends = time.monotonic() + 60 * minutes
    while True:
        states = model_states(apps)
        for app, (state, reason) in states.items():
            if state == "failed":
                raise ValueError(f"{app!r} could not be started, and nothing changed: {reason}")
        if all(state in ("ready", "idle") for state, _ in states.values()):
            return
        if time.monotonic() > ends:
            raise TimeoutError(
                f"{sorted(apps)} did not load within {minutes:g} minutes, and nothing changed: see "
                "whether the cluster has room beside the old versions, or give more `--minutes`"
            )
        time.sleep(POLL_SECONDS)


def _check_scores(name: str, old: str, new: str) -> None:
    """Checks that a new version scores what the old one scores.

    Functions may have no score for a text without a label, so that the old version is the measure.

    Raises:
        ValueError: a score is missing.
    """
    expected, answer = _scores(old), _scores(new)
    if isinstance(answer, str):
        raise ValueError(f"version {version_of(new)} of {name!r} does not answer: {answer}")
    for place, (number, error) in enumerate(answer):
        is_expected = isinstance(expected, str) or expected[place][0] is not None
        if is_expected and (number is None or not math.isfinite(number)):
            raise ValueError(
                f"version {version_of(new)} of {name!r} has no score for a plain conversation, and "
                f"nothing changed: {error}"
            )


def _scores(app: str) -> list[tuple[float | None, str]] | str:
    """Returns scores and errors of known responses; of what does not answer, the reason."""
    prompt, responses = EXAMPLE_CONVERSATIONS[0]
    chat = Chat(tuple(prompt), responses)
    request = ReplicaRequest(items=(chat,), bucket=bucket_of(chat), timeout=CHECK_SECONDS)
    handle = serve.get_deployment_handle(DEPLOYMENT, app_name=app)
    try:
        answer: ModelAnswer | RequestError = handle.answer.remote(request).result(
            timeout_s=CHECK_SECONDS
        )
    except Exception as error:  # whatever Ray raises, it does not answer
        return type(error).__name__
    if isinstance(answer, RequestError):
        return str(answer)
    return [(score.score, score.error) for score in answer.items[0]]


def _switch(server: RunningServer, routes: Routes) -> None:
    """Sends the next requests by new routes, and waits until all of the gateway's replicas do."""
    config = {"routes": dict(routes.current), "latest": dict(routes.latest)}
    gateway = gateway_app_with_keys(server.description.gateway, server.description.keys, config)
    target = serve.RunTarget(gateway, gateway_name(server.name), server.description.route)
    serve.run_many([target], wait_for_applications_running=True)
