"""A replica of a scorer without a model: a function, another server's endpoint, a recording."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import JsonValue

from actors.replica import Replica, Scores
from panoply.config.serve import ServedModelConfig
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import FunctionScorer
from panoply.scorers.where import PythonFunction, RemoteEndpoint, open_scorer, parse_where
from panoply.secret import NO_KEYS, Keys
from panoply.serve.calls import ReplicaRequest
from panoply.wire.breaker import CircuitState
from panoply.wire.request import Item, RequestError, Score


class FunctionReplica(Replica[Item]):
    """A replica of a function, an endpoint or a recording, which take items whole."""

    def __init__(self, config: ServedModelConfig, keys: Keys = NO_KEYS) -> None:
        """Opens the scorer; raises as `open_scorer` does.

        Args:
            config: the scorer's settings.
            keys: API key of its endpoint, where the environment of this process lacks it.
        """
        keys.export()
        self.kind = parse_where(config.where).kind
        super().__init__(config, {"kind": self.kind} | _place(config.where))
        try:
            self.scorer = open_scorer(config)
        except ValueError as error:
            cause = error.__cause__
            if cause is None or not isinstance(parse_where(config.where), PythonFunction):
                raise
            # Clients and Serve's log are told why a model failed: a user's module may raise a key.
            raise ValueError(
                f"the module of {config.where!r} cannot be imported on this node "
                f"({type(cause).__name__}): import it there in Python to see why"
            ) from None

    def about(self) -> dict[str, JsonValue]:
        """Returns the kind and the circuit alone: a place is for those who ask with a request."""
        return {
            "kind": self.kind,
            "objectives": [],
            "provenance": {"kind": self.kind},
            "circuit": self.circuit,
        }

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to what scores, "closed" where nothing can be taken out."""
        match self.scorer:
            case FunctionScorer() | EndpointScorer():
                return self.scorer.circuit
            case _:
                return "closed"

    def check_health(self) -> None:
        """Raises RuntimeError where a function cannot be called any more: Serve restarts it."""
        if isinstance(self.scorer, FunctionScorer):
            self.scorer.check_health()

    def check(self, request: ReplicaRequest) -> None:
        """Checks that a request asks for plain scores.

        Raises:
            RequestError: it compares, or it weighs objectives.
        """
        name = self.config.name
        if request.compares:
            raise RequestError(
                f"{name!r} is a {self.kind}, whose scores have no temperature that makes "
                "probabilities of them: ask for its scores (`/v1/rewards`)"
            )
        if request.weights:
            raise RequestError(f"{name!r} has no objectives to weigh")

    def read(self, item: Item, compares: bool) -> list[Item]:
        """Returns the item, whole."""
        return [item]

    async def score(self, units: Sequence[Item], request: ReplicaRequest) -> Scores:
        """Returns the scores of each item; after the request's time, the same error for all."""
        try:
            async with asyncio.timeout(request.timeout):
                return await self.scorer.score(units)
        except TimeoutError:
            late = Score(error=f"{self.config.name!r} gave no score in time", transient=True)
            return [(late,) * len(item.responses) for item in units]


def _place(where: str) -> dict[str, str]:
    """Returns the part of a WHERE that clients may know: of another server, not its address."""
    match place := parse_where(where):
        case RemoteEndpoint():
            return {"dialect": place.dialect, "model": place.model}
        case _:
            return {"where": where}
