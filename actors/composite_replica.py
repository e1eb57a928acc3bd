"""A replica of a composite, which asks the replicas of the reward models that are its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from pydantic import JsonValue
from ray.serve.handle import DeploymentHandle

from actors.ask_replica import ask_replica
from actors.function_replica import FunctionReplica
from actors.replica import Scores
from panoply.config.serve import ServedModelConfig
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.secret import NO_KEYS, Keys
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Detail, Details, Item, RequestError, Score, scored, sigmoid

ModelHandle: TypeAlias = "DeploymentHandle[Any]"
"""Handle of replicas of a reward model."""
PART_SECONDS = 600.0
"""Seconds for a part's answer; the request to the composite ends before, and cancels it."""
OBJECTIVES: frozenset[Detail] = frozenset({"objectives"})


class CompositeReplica(FunctionReplica):
    """A replica of a composite. Functions, endpoints, judges and tables are opened in it."""

    def __init__(
        self,
        config: ServedModelConfig,
        keys: Keys = NO_KEYS,
        models: Mapping[str, ModelHandle] | None = None,
    ) -> None:
        """Opens the parts; raises as `open_scorer` does.

        Args:
            config: the composite's settings.
            keys: API keys of endpoints, where the environment of this process lacks them.
            models: the reward models among the parts, by their WHERE.
        """
        handles = models or {}
        super().__init__(config, keys, lambda part: ModelPart(part.name, handles[part.where]))

    @property
    def temperature(self) -> float | None:
        """Fitted temperature of the scores; None where there is none."""
        assert isinstance(self.scorer, CompositeScorer)
        fitted = self.scorer.config.fitted
        return fitted.temperature if fitted else None

    def check(self, request: ReplicaRequest) -> None:
        """Checks that a request asks for scores, or for probabilities that are calibrated.

        Raises:
            RequestError: it compares and no temperature is fitted, or it weighs objectives.
        """
        if not request.compares or request.weights or self.temperature is None:
            super().check(request)

    async def score(self, units: Sequence[Item], request: ReplicaRequest) -> Scores:
        """Returns the scores of each item; of a pair P(a > b) = sigma((s_a - s_b) / T)."""
        rows = await super().score(units, request)
        temperature = self.temperature
        if not request.compares or temperature is None:
            return rows
        return [(_preference(a, b, temperature),) for a, b in rows]

    def about(self) -> dict[str, JsonValue]:
        """Returns kind, limits, and the parts under whose names scores come back, with theirs."""
        assert isinstance(self.scorer, CompositeScorer)
        parts: list[JsonValue] = [
            {"name": name, "low": None, "high": None} for name in self.scorer.names
        ]
        return {**super().about(), "objectives": parts}


class ModelPart:
    """A reward model that is a part of a composite, behind replicas of its own."""

    def __init__(self, name: str, handle: ModelHandle) -> None:
        """Takes the handle; nothing is asked.

        Args:
            name: of the part, for errors.
            handle: of its replicas.
        """
        self.name, self.handle = name, handle

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        return tuple(await asyncio.gather(*map(self._item, items)))

    async def _item(self, item: Item) -> tuple[Score, ...]:
        request = ReplicaRequest(
            items=(item,), bucket=bucket_of(item), timeout=PART_SECONDS, details=OBJECTIVES
        )
        answer = await ask_replica(self.name, self.handle.answer.remote, request)
        if isinstance(answer, RequestError):
            failed = Score(error=answer.message, transient=answer.status in (429, 503))
            return (failed,) * len(item.responses)
        return answer.items[0]


def _preference(a: Score, b: Score, temperature: float) -> Score:
    """Returns the probability that the first of two responses is better, or the error of one."""
    if a.score is None or b.score is None:
        return replace(a if a.score is None else b, details=Details())
    num_tokens, num_cut = a.num_tokens + b.num_tokens, a.num_cut + b.num_cut
    margin = (a.score - b.score) / temperature
    return scored(sigmoid(margin), num_tokens=num_tokens, num_cut=num_cut)
