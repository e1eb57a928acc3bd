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
from panoply.config.composite import WeightedSum
from panoply.config.serve import ServedModelConfig
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.scorers.deadline import seconds_left
from panoply.scorers.where import Scorer
from panoply.secret import NO_KEYS, Keys
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Detail, Item, RequestError, Score

ModelHandle: TypeAlias = "DeploymentHandle[Any]"
"""Handle of replicas of a reward model."""
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

    def check(self, request: ReplicaRequest) -> None:
        """Checks that a request compares by a fitted temperature, and weighs parts of a sum.

        Raises:
            RequestError: no temperature is fitted, or the rule has no weights.
        """
        super().check(replace(request, weights={}))
        assert isinstance(self.scorer, CompositeScorer)
        rule = self.scorer.config.rule
        if request.weights and not isinstance(rule, WeightedSum):
            raise RequestError(
                f"{self.config.name!r} is a composite by the rule {rule.kind!r}, which takes no "
                "`weights`: only those by the rule 'sum' do"
            )

    def scorer_of(self, request: ReplicaRequest) -> Scorer:
        """Returns the composite, by the weights of a request where it has some."""
        assert isinstance(self.scorer, CompositeScorer)
        return self.scorer.weighted(request.weights) if request.weights else self.scorer

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
            items=(item,), bucket=bucket_of(item), timeout=seconds_left(), details=OBJECTIVES
        )
        answer = await ask_replica(self.name, self.handle.answer.remote, request)
        if isinstance(answer, RequestError):
            failed = Score(error=answer.message, transient=answer.status in (429, 503))
            return (failed,) * len(item.responses)
        return answer.items[0]
