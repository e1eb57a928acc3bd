"""One replica of a scorer: requests in, a score or an error for every response out.

Every kind of replica is this core with its own `read` and `score`; neither Serve nor torch is
needed here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeAlias, TypeVar

from pydantic import JsonValue

from actors.internal_error import internal_error
from panoply.config.serve import ServedModelConfig
from panoply.serve.calls import ReplicaRequest, each_alone
from panoply.wire.request import Item, ModelAnswer, RenderedText, RequestError, Score
from panoply.wire.templates import as_chat

Unit = TypeVar("Unit")
Scores: TypeAlias = Sequence[tuple[Score, ...]]


class Replica(ABC, Generic[Unit]):
    """Answers requests to one scorer; a `Unit` is what the scorer takes of an item at a time."""

    def __init__(self, config: ServedModelConfig, provenance: Mapping[str, str]) -> None:
        self.config = config
        self.provenance = provenance
        """Origin of the scores, for requests that ask for it."""
        self.reader = ThreadPoolExecutor(1, "read")

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

        # Reading tokenizes, which must not hold up the event loop.
        readings = await asyncio.get_running_loop().run_in_executor(
            self.reader, lambda: [self._read(item, request.compares) for item in request.items]
        )

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
        return ModelAnswer(model=self.config.name, items=tuple(items), provenance=provenance)

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
