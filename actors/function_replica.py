"""A judge of an arm that is no model here: a function, another server's endpoint, a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import JsonValue

from actors.internal_error import internal_error
from panoply.config.serve import ServedModelConfig
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import load_function
from panoply.scorers.recorded import RecordedScorer
from panoply.serve.calls import ReplicaRequest, each_alone
from panoply.wire.request import Item, ModelAnswer, RenderedText, RequestError, Score
from panoply.wire.templates import as_chat

Scores = tuple[tuple[Score, ...], ...]


class Scorer(Protocol):
    """What scores items."""

    async def score(self, items: Sequence[Item]) -> Scores:
        """Returns the scores of all items; those that failed as errors of their response."""
        ...


def arm_of(config: ServedModelConfig, *, on_node: bool = True) -> Scorer:
    """Returns a function, remote or replayed arm.

    Args:
        config: of the arm.
        on_node: whether this is the node it runs on, which holds its key.

    Raises:
        ValueError, FileNotFoundError: there is no such function or table, or the endpoint cannot
            be asked so.
    """
    if config.kind == "function":
        return load_function(config.function)
    if config.kind == "replay":
        return RecordedScorer(config.recorded)
    place = config.remote
    return EndpointScorer(
        place.url,
        place.dialect,
        model=place.model,
        template=config.remote_template,
        api_key_env=config.remote_key_variable if on_node else "",
    )


class FunctionReplica:
    """Answers calls by an arm; what Serve makes replicas of."""

    def __init__(self, config: ServedModelConfig) -> None:
        """Makes the arm; raises as `arm_of` does."""
        self.config, self.arm = config, arm_of(config)

    async def answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a call."""
        try:
            return await self._answer(call)
        except Exception as error:
            return internal_error(f"{self.config.kind} {self.config.name!r}", error)

    async def _answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        if call.compares:
            return RequestError(
                f"{self.config.name!r} is a {self.config.kind}, whose scores have no temperature "
                "that makes probabilities of them: ask for its scores (`/v1/rewards`)"
            )
        if call.weights:
            return RequestError(f"{self.config.name!r} has no objectives to weigh")
        read = [self._read(item) for item in call.items]
        asked = [one for item in read for one in item if not isinstance(one, Score)]
        scores = iter(await self.arm.score(asked))
        items = tuple(
            tuple(s for one in item for s in ((one,) if isinstance(one, Score) else next(scores)))
            for item in read
        )
        wanted = "provenance" in call.details
        provenance = {"kind": self.config.kind, "where": self.config.where} if wanted else {}
        return ModelAnswer(model=self.config.name, items=items, provenance=provenance)

    def _read(self, item: Item) -> list[Item | Score]:
        """Returns an item with text made turns; in place of a response that has none, why."""
        if not isinstance(item, RenderedText) or not self.config.rendered_by:
            return [item]
        try:
            return [as_chat(item, self.config.rendered_by)]
        except RequestError as error:
            if len(item.responses) == 1:
                return [Score(error=str(error))]
        return [one for alone in each_alone(item) for one in self._read(alone)]

    def about(self) -> dict[str, JsonValue]:
        """Returns what it is."""
        return {
            "kind": self.config.kind,
            "objectives": [],
            "provenance": {"kind": self.config.kind},
        }
