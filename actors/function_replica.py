"""A replica of a scorer without a model: a function, another server's endpoint, a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import JsonValue

from actors.replica import Replica, Scores
from panoply.config.serve import ServedModelConfig
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import load_function
from panoply.scorers.recorded import RecordedScorer
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Item, RequestError


class Scorer(Protocol):
    """A scorer of whole items."""

    async def score(self, items: Sequence[Item]) -> Scores:
        """Returns the scores of all items; those that failed as errors of their response."""
        ...


def make_scorer(config: ServedModelConfig, *, on_node: bool = True) -> Scorer:
    """Returns the function, endpoint or recording that a configuration names.

    Args:
        config: of the scorer.
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


class FunctionReplica(Replica[Item]):
    """A replica of a function, an endpoint or a recording, which take items whole."""

    def __init__(self, config: ServedModelConfig) -> None:
        """Makes the scorer; raises as `make_scorer` does."""
        super().__init__(config, {"kind": config.kind, "where": config.where})
        self.scorer = make_scorer(config)

    def about(self) -> dict[str, JsonValue]:
        """Returns the kind alone: a place is for those who ask with a request."""
        kind = self.config.kind
        return {"kind": kind, "objectives": [], "provenance": {"kind": kind}}

    def check(self, request: ReplicaRequest) -> None:
        """Checks that a request asks for plain scores.

        Raises:
            RequestError: it compares, or it weighs objectives.
        """
        name, kind = self.config.name, self.config.kind
        if request.compares:
            raise RequestError(
                f"{name!r} is a {kind}, whose scores have no temperature that makes probabilities "
                "of them: ask for its scores (`/v1/rewards`)"
            )
        if request.weights:
            raise RequestError(f"{name!r} has no objectives to weigh")

    def read(self, item: Item, compares: bool) -> list[Item]:
        """Returns the item, whole."""
        return [item]

    async def score(self, units: Sequence[Item], request: ReplicaRequest) -> Scores:
        """Returns the scores of each item."""
        return await self.scorer.score(units)
