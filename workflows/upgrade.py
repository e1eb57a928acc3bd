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
from dataclasses import asdict, replace

from ray import serve

from panoply.config.serve import ServedModelConfig
from panoply.config.upgrade import RollbackConfig, UpgradeConfig
from panoply.hub.example_conversations import EXAMPLE_CONVERSATIONS
from panoply.report.progress import RunLogger
from panoply.secret import NO_KEYS
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Chat, ModelAnswer, RequestError
from workflows.cluster.gateway import (
    POLL_SECONDS,
    gateway_app_with_keys,
    gateway_name,
    handle_at,
    model_states,
    version_of,
)
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.models import model_app_with_keys
from workflows.cluster.ray_cluster import connect, is_on_loopback
from workflows.cluster.resolve_model import resolve_model
from workflows.cluster.shared import Change, deploy_members, without
from workflows.cluster.tenancy import described, holding, serve_details
from workflows.cluster.versions import Routes, RunningServer, members_of

CHECK_SECONDS = 60.0
"""Time limit for the scores by which versions are checked."""


def run_upgrade(config: UpgradeConfig, logger: RunLogger) -> None:
    """Deploys new versions of models beside the old ones, checks them, and switches to them.

    Models that are added are checked in the same way; those that are removed get no more requests
    before they are taken down.

    Raises:
        ValueError, OSError: there is no such server or model, or a new version cannot be loaded, or
            gives no score where the old one does. The old versions answer as before.
    """
    config.check_change()
    new = [resolve_model(model, is_served=True) for model in config.served_models()]
    added = [resolve_model(model, is_served=True) for model in config.added_models()]
    with running_server(config.name) as server:
        _check_names([model.name for model in new], server.routes.current)
        _check_added(server, [model.name for model in added])
        _check_removed(server, config.remove)
        change = Change.of(server, [_settled(server, model, config) for model in [*new, *added]])
        for model in new:
            other = server.routes.others.get(model.name, "")
            if other and "/" not in other:
                serve.delete(other)
        try:
            _deploy(change.alone)
            deploy_members(server, change.members)
            _await_loaded({app: app for app in change.alone}, config.minutes, logger)
            for name, place in change.places.items():
                _check_scores(name, server.routes.current.get(name, ""), place)
            _switch(server, server.routes.moved(change.places).without(config.remove))
        except BaseException:
            if not set(change.places.values()) & set(_routes(server).current.values()):
                for app in change.alone:
                    serve.delete(app)
                deploy_members(server, {app: server.members[app] for app in change.members})
            raise
        _take_down(server, config.remove)
    for name, place in change.places.items():
        logger.info(f"{name}: version {version_of(place)} answers")
    for name in config.remove:
        logger.info(f"{name}: removed")
    if new:
        way = "python -m jobs.serve rollback, with the same `--name` and `--port`"
        logger.info(f"the way back: {way}")


def run_rollback(config: RollbackConfig, logger: RunLogger) -> None:
    """Switches models back to the version before.

    Raises:
        ValueError: there is no such server or model, or no other version that answers.
    """
    with running_server(config.name) as server:
        others = server.routes.answered
        _check_names(config.models, server.routes.current)
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
        models, details = [model.name for model in description.models], serve_details()
        routes, members = Routes.read(name, models, details), members_of(name, details)
        yield RunningServer(name, description, routes, members)


def _routes(server: RunningServer) -> Routes:
    """Returns the routes as they are now."""
    models = [model.name for model in server.description.models]
    return Routes.read(server.name, models, serve_details())


def _check_names(names: Sequence[str], models: Collection[str]) -> None:
    unknown = sorted(set(names) - set(models))
    if unknown:
        raise ValueError(f"`models` must be names among {sorted(models)}, got {unknown}")


def _check_added(server: RunningServer, names: Sequence[str]) -> None:
    """Checks that models may be added.

    Raises:
        ValueError: a name is taken, or all models of the server ask for keys, which these lack.
    """
    taken = sorted(set(names) & set(server.routes.current))
    if taken:
        raise ValueError(f"`add` must be new names, and the server has {taken}: upgrade those")
    keys = server.description.gateway["keys"]
    if names and set(server.routes.current) <= set(keys):
        raise ValueError(
            "`add` adds models that ask for no API key, and every model of this server asks for "
            "one: start the server anew with the model and its `--keys`"
        )


def _check_removed(server: RunningServer, names: Sequence[str]) -> None:
    """Checks that models may be removed.

    Raises:
        ValueError: there is no such model, or it is the one that answers where none is named.
    """
    if not names:
        return
    _check_names(names, server.routes.current)
    gateway = server.description.gateway
    default = gateway["default"] or gateway["models"][0]
    if default in names:
        raise ValueError(
            f"`remove` names {default!r}, which answers where a client names no model: remove "
            "others, or start the server anew with another `--gateway.default`"
        )


def _settled(
    server: RunningServer, model: ServedModelConfig, config: UpgradeConfig
) -> ServedModelConfig:
    """Returns a new version with the settings of the model before it, or of the server's first."""
    models = {each.name: each for each in server.description.models}
    before = models.get(model.name, server.description.models[0])
    return replace(
        before,
        name=model.name,
        where=model.where,
        trust_remote_code=config.trust_remote_code,
    )


def _take_down(server: RunningServer, names: Sequence[str]) -> None:
    """Removes models of which the gateway does not know any more."""
    places = [server.routes.current[name] for name in names]
    places += [server.routes.others[name] for name in names if name in server.routes.others]
    for place in places:
        if "/" not in place:
            serve.delete(place)
    before = members_of(server.name, serve_details())
    after = without(before, places)
    deploy_members(server, {app: after[app] for app in after if after[app] != before[app]})


def _deploy(versions: Mapping[str, ServedModelConfig]) -> None:
    """Starts applications, by their names, and waits for none of them."""
    if not versions:
        return
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
    """Checks that a new version scores what the old one scores; an added model, that it answers.

    Functions may have no score for a text without a label, so that the old version is the measure.

    Raises:
        ValueError: a score is missing.
    """
    answer = _scores(new)
    expected = _scores(old) if old else answer
    if isinstance(answer, str):
        raise ValueError(f"version {version_of(new)} of {name!r} does not answer: {answer}")
    for place, (number, error) in enumerate(answer):
        is_expected = isinstance(expected, str) or expected[place][0] is not None
        if is_expected and (number is None or not math.isfinite(number)):
            raise ValueError(
                f"version {version_of(new)} of {name!r} has no score for a plain conversation, and "
                f"nothing changed: {error}"
            )


def _scores(place: str) -> list[tuple[float | None, str]] | str:
    """Returns scores and errors of known responses; of what does not answer, the reason."""
    prompt, responses = EXAMPLE_CONVERSATIONS[0]
    chat = Chat(tuple(prompt), responses)
    request = ReplicaRequest(items=(chat,), bucket=bucket_of(chat), timeout=CHECK_SECONDS)
    handle, member = handle_at(place)
    try:
        answer: ModelAnswer | RequestError = handle.answer.remote(request, **member).result(
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
