"""Counts of a served request, for `benchmarks.counts`: calls, hops and processes behind a gateway.

Calls are those that a request really makes, of replicas in this process; hops and processes are
read from the applications that would be deployed. Neither starts Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ray.serve import Application

from actors.composite_replica import CompositeReplica
from actors.gateway import Gateway, Model
from actors.model_replica import RewardModelReplica
from benchmarks.harness import Count, counted
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.scorers.where import CombinedScorers, LocalModel, local_models, parse_where
from panoply.wire.request import Chat, ScoreRequest
from tests.builders.models import save_small
from tests.builders.tokenizers import chat_tokenizer
from workflows.cluster.models import model_app
from workflows.cluster.resolve_model import resolve_model

LENGTH = "function:panoply.serve.verifiers:length"
COMPOSITE = """\
parts:
  first: {{where: "{0}"}}
  second: {{where: "{1}"}}
rule: {{kind: sum}}
scale: raw
"""
BANDIT = f"""\
arms:
  first: {{where: "{LENGTH}"}}
  second: {{where: "function:panoply.serve.verifiers:lines"}}
bandit: {{kind: uniform}}
log: log
"""


@dataclass(slots=True)
class CountedReplica:
    """Stands where Ray Serve's handle does: a replica in this process, and how often it is asked.

    A call by a handle goes to one replica in another process.
    """

    replica: Any
    num_calls: int = 0

    @property
    def answer(self) -> CountedReplica:
        """The method of the replica that can be called."""
        return self

    async def remote(self, request: Any) -> Any:
        """Sends a request."""
        self.num_calls += 1
        return await self.replica.answer(request)


def scorers(folder: Path) -> dict[str, str]:
    """Returns the WHERE of scorers by what they are; their files are written into a folder."""
    models = [folder / "first", folder / "second"]
    for seed, model in enumerate(models):
        save_small(model, chat_tokenizer(), head_seed=seed)
    (folder / "models.yaml").write_text(COMPOSITE.format(*models))
    (folder / "functions.yaml").write_text(COMPOSITE.format(LENGTH, LENGTH))
    (folder / "bandit.yaml").write_text(BANDIT)
    return {
        "a model": str(models[0]),
        "a composite of two models": f"combine:{folder / 'models.yaml'}",
        "a composite of two functions": f"combine:{folder / 'functions.yaml'}",
        "a bandit of two functions": f"bandit:{folder / 'bandit.yaml'}",
    }


def call_counts(wheres: Mapping[str, str]) -> dict[str, Count]:
    """Returns the calls of a request with 16 responses to one prompt, by what is asked.

    Raises:
        RuntimeError: a response got no score, so that its calls say nothing.
    """
    prompt = ({"role": "user", "content": "How many bridges does this city have?"},)
    chat = Chat(prompt, tuple(f"It has {number} of them." for number in range(16)))
    request = ScoreRequest(items=(chat,), models=("m",))
    figures: dict[str, Count] = {}
    for name, where in wheres.items():
        replicas = replicas_of(ServedModelConfig(name="m", where=where))
        if not replicas:
            continue
        first = replicas[0]
        model = Model(first.remote, first.replica.about, state="ready")
        answer = asyncio.run(Gateway({"m": model}, "m", timeout=60.0).score(request))
        if errors := [score.error for score in answer.models[0].items[0] if score.error]:
            raise RuntimeError(f"{name} does not score: {errors[0]}")
        num = sum(replica.num_calls for replica in replicas)
        figures[f"calls, {name}"] = counted(num, len(replicas))
    return figures


def replicas_of(config: ServedModelConfig) -> list[CountedReplica]:
    """Returns the replicas of a scorer, the one that the gateway asks first; of a bandit none."""
    match parse_where(config.where):
        case LocalModel():
            return [CountedReplica(RewardModelReplica(config))]
        case CombinedScorers():
            parts = {
                model.where: CountedReplica(RewardModelReplica(model))
                for model in local_models(config)
            }
            handles: dict[str, Any] = {**parts}
            return [CountedReplica(CompositeReplica(config, models=handles)), *parts.values()]
        case _:
            return []


def deployed_counts(wheres: Mapping[str, str]) -> dict[str, Count]:
    """Returns hops and processes of applications as they are deployed; nothing is started."""
    figures: dict[str, Count] = {}
    for name, where in wheres.items():
        [model] = ServeConfig(models=(f"m={where}",)).served_models()
        app = model_app(asdict(resolve_model(model, is_served=True)))
        num_parts = len(local_models(model)) if where.startswith("combine:") else 0
        figures[f"hops, {name}"] = counted(num_hops(app), 2 if num_parts else 1)
        figures[f"processes, {name}"] = counted(num_replicas(app), 1 + num_parts)
    return figures


def bound_apps(app: Application) -> list[Application]:
    """Returns the applications whose replicas an application's replicas can ask."""
    deployment = app._bound_deployment  # pyright: ignore[reportPrivateUsage]
    keywords = cast(dict[str, Any], deployment.init_kwargs)  # Ray says that it is a tuple
    apps: list[Application] = []
    for value in (*deployment.init_args, *keywords.values()):
        values = value.values() if isinstance(value, dict) else (value,)
        apps += [part for part in values if isinstance(part, Application)]
    return apps


def num_hops(app: Application) -> int:
    """Returns the longest way of a request through an application, in calls."""
    return 1 + max(map(num_hops, bound_apps(app)), default=0)


def num_replicas(app: Application) -> int:
    """Returns the replicas of an application at its start."""
    replicas = app._bound_deployment.num_replicas  # pyright: ignore[reportPrivateUsage]
    assert isinstance(replicas, int)
    return replicas + sum(map(num_replicas, bound_apps(app)))
