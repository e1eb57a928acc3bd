"""One replica of a scorer: requests in, a score or an error for every response out.

Every kind of replica is this core with its own `read` and `score`; neither Serve nor torch is
needed here.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from pydantic import JsonValue

from actors.internal_error import internal_error
from panoply.config.serve import ServedModelConfig
from panoply.serve.calls import ReplicaRequest, each_alone, fingerprint_of
from panoply.wire.breaker import CircuitState
from panoply.wire.limits import ItemSize
from panoply.wire.request import Item, ModelAnswer, RenderedText, RequestError, Score
from panoply.wire.templates import as_chat

Unit = TypeVar("Unit")
Scores: TypeAlias = Sequence[tuple[Score, ...]]
READ_CHARACTERS = 100_000
"""Characters that are read at a time, some tenths of a second of tokenizing: then it is the turn of
others, and time to see whether anybody still waits."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Part of a request that is read at a time: an item, or some of its responses."""

    item: Item
    place: int
    """Index of the item in the request."""
    work: int
    """Characters to read."""


class Replica(ABC, Generic[Unit]):
    """Answers requests to one scorer; a `Unit` is what the scorer takes of an item at a time."""

    def __init__(self, config: ServedModelConfig, provenance: Mapping[str, str]) -> None:
        self.config = config
        self.provenance = provenance
        """Origin of the scores, for requests that ask for it."""
        self.reader = ThreadPoolExecutor(1, "read")
        self.num_reading = 0
        """Responses of the requests that are being read."""
        self._fingerprints: dict[CircuitState, str] = {}

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to what scores, "closed" where nothing can be taken out."""
        return "closed"

    @property
    def fingerprint(self) -> str:
        """Hash of what the replica says of itself, which nothing but its circuit changes."""
        if self.circuit not in self._fingerprints:
            self._fingerprints[self.circuit] = fingerprint_of(self.about())
        return self._fingerprints[self.circuit]

    @abstractmethod
    def about(self) -> dict[str, JsonValue]:
        """Returns kind, objectives and provenance, for the list of models."""

    @abstractmethod
    def check(self, request: ReplicaRequest) -> None:
        """Checks that the scorer can answer a request at all.

        Raises:
            RequestError: it cannot.
        """

    @abstractmethod
    def read(self, item: Item, compares: bool) -> Sequence[Unit]:
        """Returns what is to be scored of an item.

        Raises:
            ValueError: the item, or one of its responses, cannot be read.
        """

    @abstractmethod
    async def score(self, units: Sequence[Unit], request: ReplicaRequest) -> Scores:
        """Returns the scores of each unit, failed ones as errors.

        Raises:
            RequestError: none of the units was taken.
        """

    async def answer(self, request: ReplicaRequest) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a request.

        A request that gets no answer at all gets its error as a value, since an exception changes
        its class between processes.
        """
        try:
            return await self._answer(request)
        except RequestError as error:
            return error
        except Exception as error:
            return internal_error(f"{self.provenance['kind']} {self.config.name!r}", error)

    async def _answer(self, request: ReplicaRequest) -> ModelAnswer:
        self.check(request)
        ends = time.monotonic() + request.timeout
        num_responses = sum(len(item.responses) for item in request.items)
        self.num_reading += num_responses
        try:
            readings = await self._readings(request, ends)
        finally:
            self.num_reading -= num_responses
        request = replace(request, timeout=max(0.0, ends - time.monotonic()))

        # What can be read is scored at once, so that it may share batches.
        units: list[Unit] = []
        for reading in readings:
            units += [part for part in reading if not isinstance(part, Score)]
        scores = await self.score(units, request)

        # Scores and errors go back to their items, in the order of the responses.
        items: list[tuple[Score, ...]] = []
        num_scored = 0
        for reading in readings:
            item: list[Score] = []
            for part in reading:
                if isinstance(part, Score):
                    item.append(part)
                else:
                    item += scores[num_scored]
                    num_scored += 1
            items.append(tuple(item))
        provenance = self.provenance if "provenance" in request.details else {}
        return ModelAnswer(
            model=self.config.name,
            items=tuple(items),
            provenance=provenance,
            fingerprint=self.fingerprint,
        )

    def portions(self, item: Item, place: int, compares: bool) -> list[Portion]:
        """Returns the parts in which an item is read: the whole of it, where that is little."""
        return [Portion(item, place, ItemSize.of(item).characters)]

    async def _readings(self, request: ReplicaRequest, ends: float) -> list[list[Unit | Score]]:
        """Returns the units of each item, in place of what cannot be read its error.

        Reading tokenizes, which must not hold up the event loop. Requests that are read at the same
        time take turns.

        Raises:
            RequestError: 503, the request's time is over.
        """
        readings: list[list[Unit | Score]] = [[] for _ in request.items]
        loop = asyncio.get_running_loop()
        for turn in self._turns(request):
            if time.monotonic() > ends:
                why = (
                    f"{self.config.name!r} did not read the request within {request.timeout:.3g} s"
                )
                raise RequestError(why, 503)
            parts = await loop.run_in_executor(self.reader, self._read_all, turn, request.compares)
            for portion, part in zip(turn, parts, strict=True):
                readings[portion.place] += part
        return readings

    def _turns(self, request: ReplicaRequest) -> Iterator[list[Portion]]:
        """Yields what is read at a time."""
        turn: list[Portion] = []
        work = 0
        for place, item in enumerate(request.items):
            for portion in self.portions(item, place, request.compares):
                if turn and work + portion.work > READ_CHARACTERS:
                    yield turn
                    turn, work = [], 0
                turn.append(portion)
                work += portion.work
        if turn:
            yield turn

    def _read_all(self, turn: Sequence[Portion], compares: bool) -> list[list[Unit | Score]]:
        return [self._read(portion.item, compares) for portion in turn]

    def _read(self, item: Item, compares: bool) -> list[Unit | Score]:
        """Returns the units of an item; in place of a response that cannot be read, its error."""
        try:
            if isinstance(item, RenderedText) and self.config.rendered_by:
                return [*self.read(as_chat(item, self.config.rendered_by), compares)]
            return [*self.read(item, compares)]
        except ValueError as error:
            if compares or len(item.responses) == 1:
                return [Score(error=str(error))]
        parts: list[Unit | Score] = []
        for single in each_alone(item):
            parts += self._read(single, compares)
        return parts
