"""Models of a server that share a loaded backbone: which do, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray import serve

from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.scorers.where import LocalModel, parse_where
from workflows.cluster.gateway import backbone_name, model_name, place_on
from workflows.cluster.models import shared_app
from workflows.cluster.versions import RunningServer


def key_of(model: ServedModelConfig) -> str:
    """Returns the name of the backbone that a model may share; empty where it may share none.

    Args:
        model: settings, resolved (`workflows.cluster.resolve_model`).

    Raises:
        ValueError, OSError: its files cannot be read, or its adapter replaces weights of its base.
    """
    if not isinstance(parse_where(model.where), LocalModel):
        return ""
    # Torch loads here alone.
    from panoply.hub.artefact.sharing import backbone_key

    return backbone_key(model.where)


def places_of(models: Sequence[ServedModelConfig], config: ServeConfig) -> dict[str, str]:
    """Returns the place of each model that is to share a backbone, by the model's name.

    Raises:
        ValueError, OSError: as `key_of`.
    """
    if not config.share_backbone:
        return {}
    keys = {model.name: key_of(model) for model in models}
    return {
        name: place_on(backbone_name(config.name, key), name) for name, key in keys.items() if key
    }


def backbone_args(
    models: Sequence[ServedModelConfig], config: ServeConfig, places: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns the arguments of the application of each shared backbone, by its name.

    Args:
        models: all models of the server.
        config: settings of the server.
        places: as `places_of` gives them.
    """
    by_app: dict[str, dict[str, Any]] = {}
    for model in models:
        if model.name in places:
            app, _, member = places[model.name].partition("/")
            by_app.setdefault(app, {})[member] = asdict(model)
    return {
        app: {
            "name": app,
            "key": app.removeprefix(backbone_name(config.name, "")),
            "models": members,
            "scaling": asdict(config.scaling),
            "batch": asdict(config.batch),
        }
        for app, members in by_app.items()
    }


def describe(models: Sequence[ServedModelConfig], places: Mapping[str, str]) -> list[str]:
    """Returns a line for each shared backbone, and one for the models that share none."""
    by_app: dict[str, list[str]] = {}
    for name, place in places.items():
        by_app.setdefault(place.partition("/")[0], []).append(name)
    lines = [
        f"{', '.join(names)}: adapters on one loaded backbone, {app.rpartition('-')[2]}"
        for app, names in by_app.items()
    ]
    alone = [model.name for model in models if model.name not in places]
    return lines + ([f"{', '.join(alone)}: no adapters, loaded whole"] if alone else [])


@dataclass(frozen=True, slots=True)
class Change:
    """New versions and models, and what is to run of a server for them."""

    places: Mapping[str, str]
    """Place of each new version, by the model's name."""
    alone: Mapping[str, ServedModelConfig]
    """New applications of models that share no backbone."""
    members: Mapping[str, Mapping[str, Any]]
    """Models that are to be on each shared backbone, where they change."""

    @classmethod
    def of(cls, server: RunningServer, models: Sequence[ServedModelConfig]) -> Change:
        """Plans new versions: an adapter on a backbone that is loaded is put onto it.

        Raises:
            ValueError, OSError: a model's files cannot be read.
        """
        places: dict[str, str] = {}
        alone: dict[str, ServedModelConfig] = {}
        members = {app: dict(on_it) for app, on_it in server.members.items()}
        for model in models:
            number = server.routes.latest.get(model.name, 0) + 1
            key = key_of(model) if members else ""
            app = backbone_name(server.name, key)
            if app in members:
                places[model.name] = place = place_on(app, model.name, number)
                members[app][place.partition("/")[2]] = asdict(model)
            else:
                places[model.name] = app = model_name(server.name, model.name, number)
                alone[app] = model
            other = server.routes.others.get(model.name, "")
            members = without(members, [other])
        changed = {app: on_it for app, on_it in members.items() if on_it != server.members[app]}
        return cls(places, alone, changed)


def deploy_members(server: RunningServer, members: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets the models on shared backbones, and waits until all replicas know of them."""
    apps = {
        app: shared_app({**server.description.backbones[app], "models": dict(on_it)})
        for app, on_it in members.items()
    }
    targets = [serve.RunTarget(target, app, route_prefix=None) for app, target in apps.items()]
    if targets:
        serve.run_many(targets, wait_for_applications_running=True)


def without(
    members: Mapping[str, Mapping[str, Any]], places: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the models on shared backbones but for those at some places."""
    return {
        app: {member: model for member, model in on_it.items() if f"{app}/{member}" not in places}
        for app, on_it in members.items()
    }
