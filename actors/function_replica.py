"""A replica of a scorer that is no model here: a function, an endpoint, recorded scores."""

from __future__ import annotations

from pydantic import JsonValue

from actors.internal_error import internal_error
from panoply.config.serve import ServedModelConfig
from panoply.scorers.where import open_scorer, parse_where
from panoply.serve.calls import ReplicaRequest, each_alone
from panoply.wire.request import Item, ModelAnswer, RenderedText, RequestError, Score
from panoply.wire.templates import as_chat


class FunctionReplica:
    """Answers requests by a scorer; what Serve makes replicas of."""

    def __init__(self, config: ServedModelConfig) -> None:
        """Opens the scorer; raises as `open_scorer` does."""
        self.config, self.scorer = config, open_scorer(config)
        self.kind = parse_where(config.where).kind

    async def answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a call."""
        try:
            return await self._answer(call)
        except Exception as error:
            return internal_error(f"{self.kind} {self.config.name!r}", error)

    async def _answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        if call.compares:
            return RequestError(
                f"{self.config.name!r} is a {self.kind}, whose scores have no temperature "
                "that makes probabilities of them: ask for its scores (`/v1/rewards`)"
            )
        if call.weights:
            return RequestError(f"{self.config.name!r} has no objectives to weigh")
        read = [self._read(item) for item in call.items]
        asked = [one for item in read for one in item if not isinstance(one, Score)]
        scores = iter(await self.scorer.score(asked))
        items = tuple(
            tuple(s for one in item for s in ((one,) if isinstance(one, Score) else next(scores)))
            for item in read
        )
        wanted = "provenance" in call.details
        provenance = {"kind": self.kind, "where": self.config.where} if wanted else {}
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
            "kind": self.kind,
            "objectives": [],
            "provenance": {"kind": self.kind},
        }
