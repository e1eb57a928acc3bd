"""A replica of a scorer without a model: a function, an endpoint, a recording, a judge."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue
from ray.util.metrics import Counter

from actors.replica import Replica, Scores
from panoply.config.serve import ServedModelConfig
from panoply.scorers.deadline import within
from panoply.scorers.function import FunctionScorer
from panoply.scorers.where import (
    BehindCircuit,
    Comparing,
    Counting,
    Described,
    OpenModel,
    PythonFunction,
    RemoteEndpoint,
    Scorer,
    open_scorer,
    parse_where,
)
from panoply.secret import NO_KEYS, Keys
from panoply.serve.calls import ReplicaRequest
from panoply.wire.breaker import CircuitState
from panoply.wire.request import Detail, Item, RequestError, Score


class FunctionReplica(Replica[Item]):
    """A replica of a scorer that takes items whole."""

    def __init__(
        self,
        config: ServedModelConfig,
        keys: Keys = NO_KEYS,
        open_model: OpenModel | None = None,
    ) -> None:
        """Opens the scorer; raises as `open_scorer` does.

        Args:
            config: the scorer's settings.
            keys: API keys of its servers, where the environment of this process lacks them.
            open_model: opens a reward model that is a part of a composite.
        """
        keys.export()
        self.kind = parse_where(config.where).kind
        super().__init__(config, {"kind": self.kind} | _place(config.where))
        try:
            self.scorer = self.open(config, open_model)
        except ValueError as error:
            cause = error.__cause__
            if cause is None or not isinstance(parse_where(config.where), PythonFunction):
                raise
            # Clients and Serve's log are told why a model failed: a user's module may raise a key.
            raise ValueError(
                f"the module of {config.where!r} cannot be imported on this node "
                f"({type(cause).__name__}): import it there in Python to see why"
            ) from None
        self.counters = ScorerCounters(config.name)

    def open(self, config: ServedModelConfig, open_model: OpenModel | None) -> Scorer:
        """Returns the scorer; raises as `open_scorer` does."""
        return open_scorer(config, open_model=open_model)

    def about(self) -> dict[str, JsonValue]:
        """Returns kind, circuit, limits and cost: a place is for those who ask with a request."""
        described = self.scorer.about() if isinstance(self.scorer, Described) else {}
        return {
            "kind": self.kind,
            "objectives": [],
            "provenance": {"kind": self.kind},
            "circuit": self.circuit,
            **described,
        }

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to what scores, "closed" where nothing can be taken out."""
        return self.scorer.circuit if isinstance(self.scorer, BehindCircuit) else "closed"

    def check_health(self) -> None:
        """Raises RuntimeError where a function cannot be called any more: Serve restarts it."""
        if isinstance(self.scorer, FunctionScorer):
            self.scorer.check_health()

    def check(self, request: ReplicaRequest) -> None:
        """Checks that a request asks for what the scorer has.

        Raises:
            RequestError: it compares and the scorer does not, or it weighs objectives.
        """
        name = self.config.name
        compares = isinstance(self.scorer, Comparing) and self.scorer.compares
        if request.compares and not compares:
            raise RequestError(
                f"{name!r} is a {self.kind}, whose scores have no temperature that makes "
                "probabilities of them: ask for its scores (`/v1/rewards`)"
            )
        if request.weights:
            raise RequestError(f"{name!r} has no objectives to weigh")

    def read(self, item: Item, compares: bool) -> list[Item]:
        """Returns the item, whole."""
        return [item]

    def scorer_of(self, request: ReplicaRequest) -> Scorer:
        """Returns what scores a request."""
        return self.scorer

    async def score(self, units: Sequence[Item], request: ReplicaRequest) -> Scores:
        """Returns the scores of each item; after the request's time, the same error for all."""
        try:
            async with within(request.timeout):
                rows = await self.rows(units, request)
        except TimeoutError:
            late = Score(error=f"{self.config.name!r} gave no score in time", transient=True)
            return [(late,) * (1 if request.compares else len(item.responses)) for item in units]
        finally:
            if isinstance(self.scorer, Counting):
                self.counters.set(self.scorer.counts())
        return [_with_wanted(row, request.details) for row in rows]

    async def rows(
        self, units: Sequence[Item], request: ReplicaRequest
    ) -> Sequence[tuple[Score, ...]]:
        """Returns the scores of each item, or of a pair its probability, whenever they come."""
        scorer = self.scorer_of(request)
        if not request.compares:
            return await scorer.score(units)
        assert isinstance(scorer, Comparing)
        return [(score,) for score in await scorer.compare(units)]


class ScorerCounters:
    """Prometheus metrics of what a scorer counts, `panoply_scorer_NAME_total`."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.counters: dict[str, Counter] = {}
        self.values: dict[str, float] = {}

    def set(self, counts: Mapping[str, float]) -> None:
        """Brings the metrics to the scorer's own counts."""
        for name, value in counts.items():
            if name not in self.counters:
                metric, what = f"panoply_scorer_{name}_total", f"Of a scorer: {name}."
                self.counters[name] = Counter(metric, what, ("model",))
            more = value - self.values.get(name, 0.0)
            if more > 0:  # a counter takes no 0
                self.counters[name].inc(more, {"model": self.model})
            self.values[name] = value


def _with_wanted(row: tuple[Score, ...], details: Collection[Detail]) -> tuple[Score, ...]:
    """Returns scores without words and costs of a judge, and steps, that nobody asked for."""
    scores: list[Score] = []
    for score in row:
        had = score.details
        if had.verdicts or had.usage or had.steps:
            kept = replace(
                had,
                verdicts=had.verdicts if "verdicts" in details else (),
                usage=had.usage if "usage" in details else {},
                steps=had.steps if "steps" in details else (),
            )
            score = replace(score, details=kept)
        scores.append(score)
    return tuple(scores)


def _place(where: str) -> dict[str, str]:
    """Returns the part of a WHERE that clients may know: of another server, not its address."""
    match place := parse_where(where):
        case RemoteEndpoint():
            return {"dialect": place.dialect, "model": place.model}
        case _:
            return {"where": where}
