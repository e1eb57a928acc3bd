"""Versions of a server's models: each an application, and the one to which the gateway sends.

    NAME-model-A              version 1
    NAME-model-A@2            version 2, beside it
    NAME-backbone-KEY/A@3     version 3, on a backbone that it shares

Ray Serve keeps the gateway's routes as its settings, so that they survive any process. Of a model,
at most two versions are there: the one that answers, and the one before or after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from panoply.config.serve import ServedModelConfig
from panoply.secret import NO_KEYS, Keys
from workflows.cluster.gateway import (
    DEPLOYMENT,
    GATEWAY,
    backbone_name,
    gateway_name,
    model_name,
    version_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDescription:
    """A server as its commands have to know it, from whichever process they run in."""

    models: tuple[ServedModelConfig, ...]
    """Its models, as they were first served."""
    gateway: Mapping[str, Any]
    """Arguments of its gateway's application."""
    route: str
    """Path below which it answers."""
    keys: Keys = NO_KEYS
    """API keys that its clients send, where the nodes' environment lacks them."""
    backbones: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    """Arguments of the applications of its shared backbones, by their names."""


def named_after(server: str, apps: Iterable[str]) -> list[str]:
    """Returns the names of the applications that belong to a server."""
    prefixes = (model_name(server, ""), backbone_name(server, ""))
    return [name for name in apps if name == gateway_name(server) or name.startswith(prefixes)]


def members_of(server: str, details: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the models on each shared backbone of a server: settings by member, by application.

    Args:
        server: its name.
        details: Ray Serve's description of itself.
    """
    members: dict[str, dict[str, Any]] = {}
    for name, app in details["applications"].items():
        if name.startswith(backbone_name(server, "")):
            config = app.get("deployments", {}).get(DEPLOYMENT, {}).get("deployment_config", {})
            members[name] = dict((config.get("user_config") or {}).get("models", {}))
    return members


@dataclass(frozen=True, slots=True)
class Routes:
    """Places of a server's models, by version: applications, or members of them."""

    current: Mapping[str, str]
    """Place that answers for each model."""
    latest: Mapping[str, int]
    """Highest version that ever answered for each model: numbers are not used twice."""
    others: Mapping[str, str]
    """The other place of each model that has two versions."""

    @classmethod
    def read(cls, server: str, models: Sequence[str], details: Mapping[str, Any]) -> Routes:
        """Returns the routes of a server.

        Args:
            server: its name.
            models: names of the models that it was started with.
            details: Ray Serve's description of itself.
        """
        apps = details["applications"]
        deployments = apps.get(gateway_name(server), {}).get("deployments", {})
        config = deployments.get(GATEWAY, {}).get("deployment_config", {}).get("user_config") or {}
        # Models may have been added and removed since.
        current = config.get("routes") or {name: model_name(server, name) for name in models}
        latest = dict.fromkeys(current, 1) | config.get("latest", {})
        places = list(apps)
        for app, members in members_of(server, details).items():
            places += [f"{app}/{member}" for member in members]
        others: dict[str, str] = {}
        for name in current:
            for place in places:
                if _model_at(server, place) == name and place != current[name]:
                    others[name] = place
        return cls(current, latest, others)

    @property
    def answered(self) -> dict[str, str]:
        """The other applications that answered before: not those that a killed upgrade left."""
        return {
            name: app for name, app in self.others.items() if version_of(app) <= self.latest[name]
        }

    def moved(self, changes: Mapping[str, str]) -> Routes:
        """Returns the routes after models were moved to other applications."""
        latest = {
            name: max(self.latest.get(name, 1), version_of(place))
            for name, place in changes.items()
        }
        others = {name: self.current[name] for name in changes if name in self.current}
        return Routes(
            {**self.current, **changes}, {**self.latest, **latest}, {**self.others, **others}
        )

    def without(self, names: Iterable[str]) -> Routes:
        """Returns the routes after models were removed; their numbers are not used again."""
        gone = set(names)
        return Routes(
            {name: place for name, place in self.current.items() if name not in gone},
            self.latest,
            {name: place for name, place in self.others.items() if name not in gone},
        )


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that runs, and where its requests go."""

    name: str
    description: ServerDescription
    routes: Routes
    members: Mapping[str, Mapping[str, Any]]
    """Settings of the models on each shared backbone, by member, by application."""


def _model_at(server: str, place: str) -> str:
    """Returns the name of the model at a place of a server; empty where there is none."""
    app, slash, member = place.partition("/")
    if slash:
        return member.partition("@")[0]
    first = model_name(server, "")
    return app.removeprefix(first).partition("@")[0] if app.startswith(first) else ""
