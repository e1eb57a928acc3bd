"""Versions of a server's models: each an application, and the one to which the gateway sends.

    NAME-model-A       version 1
    NAME-model-A@2     version 2, beside it

Ray Serve keeps the gateway's routes as its settings, so that they survive any process. Of a model,
at most two versions are there: the one that answers, and the one before or after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from panoply.config.serve import ServedModelConfig
from panoply.secret import NO_KEYS, Keys
from workflows.cluster.gateway import GATEWAY, gateway_name, model_name, version_of


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


def named_after(server: str, apps: Iterable[str]) -> list[str]:
    """Returns the names of the applications that belong to a server."""
    models, gateway = model_name(server, ""), gateway_name(server)
    return [name for name in apps if name == gateway or name.startswith(models)]


@dataclass(frozen=True, slots=True)
class Routes:
    """Applications of a server's models, by version."""

    current: Mapping[str, str]
    """Application that answers for each model."""
    latest: Mapping[str, int]
    """Highest version that ever answered for each model: numbers are not used twice."""
    others: Mapping[str, str]
    """The other application of each model that has two versions."""

    @classmethod
    def read(cls, server: str, models: Sequence[str], details: Mapping[str, Any]) -> Routes:
        """Returns the routes of a server.

        Args:
            server: its name.
            models: names of its models.
            details: Ray Serve's description of itself.
        """
        apps = details["applications"]
        deployments = apps.get(gateway_name(server), {}).get("deployments", {})
        config = deployments.get(GATEWAY, {}).get("deployment_config", {}).get("user_config") or {}
        current = {name: model_name(server, name) for name in models}
        current |= config.get("routes", {})
        latest = dict.fromkeys(models, 1) | config.get("latest", {})
        others: dict[str, str] = {}
        for name in models:
            first = model_name(server, name)
            for app in apps:
                if app.partition("@")[0] == first and app != current[name]:
                    others[name] = app
        return cls(current, latest, others)

    @property
    def answered(self) -> dict[str, str]:
        """The other applications that answered before: not those that a killed upgrade left."""
        return {
            name: app for name, app in self.others.items() if version_of(app) <= self.latest[name]
        }

    def moved(self, changes: Mapping[str, str]) -> Routes:
        """Returns the routes after models were moved to other applications."""
        latest = {name: max(self.latest[name], version_of(app)) for name, app in changes.items()}
        others = {name: self.current[name] for name in changes}
        return Routes(
            {**self.current, **changes}, {**self.latest, **latest}, {**self.others, **others}
        )
