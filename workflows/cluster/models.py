"""Serve applications of models, alone or on a shared backbone: their replicas and scaling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import RequestRouterConfig

from actors.function_replica import FunctionReplica
from panoply.config.serve import ScalingConfig, ServedModelConfig, SharedBackboneConfig
from panoply.config.served_bandit import StateContext
from panoply.data.schema import digest
from panoply.scorers.bandit.opening import read_bandit
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    LocalModel,
    local_models,
    parse_where,
)
from panoply.secret import NO_KEYS, Keys
from workflows.cluster.gateway import DEPLOYMENT, MOST_CALLS, TRIES, read_args

ROUTER = "actors.affinity.PromptAffinity"
BANDIT = "Bandit"
"""Name of the deployment that decides for all replicas of a bandit."""


def model_app(args: Mapping[str, Any]) -> Application:
    """Returns the application of one model for a deploy file, whose builders take one parameter.

    Raises:
        ValueError: a setting is unknown or wrong.
    """
    return model_app_with_keys(args, NO_KEYS)


def model_app_with_keys(args: Mapping[str, Any], keys: Keys) -> Application:
    """Returns the application of one model, from the fields of a `ServedModelConfig`.

    Args:
        args: the fields.
        keys: API key of an endpoint, where the nodes' environment lacks it.

    Raises:
        ValueError: a setting is unknown or wrong.
    """
    if "key_variable" in args:
        raise ValueError(
            "`key_variable` of a model protects nothing: clients come by the gateway. Name the key "
            f"in its `keys` instead: {{{args.get('name')}: {args['key_variable']}}}"
        )
    config = read_args(ServedModelConfig, args)
    deployment = _deployment(config.scaling)
    match parse_where(config.where):
        case LocalModel():
            # Torch loads here alone: functions and other servers do without.
            from actors.model_replica import RewardModelReplica

            return deployment(RewardModelReplica).bind(config)
        case CombinedScorers():
            return _composite_app(config, keys, deployment)
        case BanditFile(file=file):
            return _bandit_app(config, keys, deployment, Path(file))
        case _:
            return deployment(FunctionReplica).bind(config, keys)


def shared_app(args: Mapping[str, Any]) -> Application:
    """Returns the application of a backbone and the models whose adapters lie on it.

    Deployed again with other models, the same replicas load and drop them, and lose no request.

    Args:
        args: the fields of a `SharedBackboneConfig`.

    Raises:
        ValueError: a setting is unknown or wrong.
    """
    from actors.shared_replica import SharedBackboneReplica

    config = read_args(SharedBackboneConfig, args)
    settings = {"models": {member: asdict(model) for member, model in config.models.items()}}
    deployed = _deployment(config.scaling)(SharedBackboneReplica).options(user_config=settings)
    # Ray Serve replaces replicas of another version, and makes one up where none is set: by this,
    # other models leave the replicas.
    alone = replace(config, models={})
    deployed._version = digest(json.dumps(asdict(alone), sort_keys=True))  # pyright: ignore[reportPrivateUsage]
    return deployed.bind(alone)


def _deployment(scaling: ScalingConfig) -> Callable[[type[Any]], Deployment]:
    """Returns what makes a deployment of a class of replicas."""
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
                # Rollouts come in bursts: Serve's mean over 30 s would see one when it is over.
                "metrics_interval_s": 1.0,
                "look_back_period_s": 5.0,
            }
        }
    return serve.deployment(
        name=DEPLOYMENT,
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


def _composite_app(
    config: ServedModelConfig, keys: Keys, deployment: Callable[[type[Any]], Deployment]
) -> Application:
    """Returns the application of a composite, with a further deployment for each reward model.

    The models batch and scale by themselves, with the composite's settings; what asks them computes
    nothing and takes no CPU.
    """
    from actors.composite_replica import CompositeReplica

    parts = _part_apps(config, deployment)
    if not parts:
        return deployment(CompositeReplica).bind(config, keys)
    asking = deployment(CompositeReplica).options(ray_actor_options={"num_cpus": 0})
    return asking.bind(config, keys, parts)


def _bandit_app(
    config: ServedModelConfig,
    keys: Keys,
    deployment: Callable[[type[Any]], Deployment],
    file: Path,
) -> Application:
    """Returns the application of a bandit: replicas that ask, the one that decides, and models.

    One process decides and writes the log: the replica where there is only one, which saves a hop
    between processes, or a deployment of its own. Serve starts it again where it dies.
    """
    from actors.bandit_contexts import num_features
    from actors.bandit_replica import BanditReplica
    from actors.online_bandit import OnlineBanditActor

    settings = read_bandit(file)
    parts = _part_apps(config, deployment)
    asking = deployment(BanditReplica)
    if parts and not isinstance(settings.context, StateContext):
        asking = asking.options(ray_actor_options={"num_cpus": 0})
    if config.scaling.max_replicas == 1:
        return asking.bind(config, keys, parts)
    deciding = serve.deployment(
        name=BANDIT,
        num_replicas=1,
        max_ongoing_requests=MOST_CALLS,
        max_constructor_retry_count=TRIES,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    bandit = deciding(OnlineBanditActor).bind(
        config.name, str(file), num_features(settings.context)
    )
    return asking.bind(config, keys, parts, bandit=bandit)


def _part_apps(
    config: ServedModelConfig, deployment: Callable[[type[Any]], Deployment]
) -> dict[str, Application]:
    """Returns a deployment for each reward model of a composite or a bandit, by its WHERE."""
    models = local_models(config)
    if not models:
        return {}
    from actors.model_replica import RewardModelReplica
    from workflows.cluster.resolve_model import resolve_model

    replica = deployment(RewardModelReplica)
    return {
        model.where: replica.options(name=f"Part-{number}").bind(resolve_model(model))
        for number, model in enumerate(models)
    }
