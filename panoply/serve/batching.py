"""Requests that arrive one by one -> batches under a token budget, those of one prompt together.

A forward runs in a thread of its own; what arrives meanwhile waits for the next. Nothing that waits
is overtaken for ever: the group whose first member came first goes first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from panoply.config.serve import BatchConfig
from panoply.model.gather import Tokenized

T = TypeVar("T")
KEY_TOKENS = 64
"""Beginning of a prompt by which waiting conversations are grouped; which of them become one tree
is decided by all of their tokens."""
LOOKS = 5
"""How often the wait for siblings looks whether more of them came."""


class Overloaded(RuntimeError):
    """The queue is full; `retry_after` seconds from now it may not be."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one batch was."""

    num_responses: int
    num_separate_tokens: int
    """Tokens of its conversations, each by itself."""
    waited: float
    """Seconds that its oldest response waited."""
    seconds: float
    """Of its forward."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    conversation: Tokenized
    arrived: float
    deadline: float
    done: asyncio.Future[T | Exception]


Key: TypeAlias = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Batcher(Generic[T]):
    """A queue in front of one model.

    Args:
        run: scores conversations, in order; called in a thread, never twice at once.
        config: see there.
        watch: told of every batch.
        clock: seconds, from any start.
        sleep: waits for so many seconds of that clock.
    """

    run: Callable[[Sequence[Tokenized]], Sequence[T]]
    config: BatchConfig
    watch: Callable[[BatchStats], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _groups: dict[Key, list[_Waiting[T]]] = field(default_factory=dict[Key, "list[_Waiting[T]]"])
    num_queued: int = 0
    """Responses that wait."""
    _rate: float = 0.0
    """Responses per second of the last forward."""
    _speed: float = 0.0
    """Tokens per second of the last forward."""
    _num_tokens: int = 0
    """Of the batch that was taken last."""
    _task: asyncio.Task[None] | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "forward"))

    async def score(
        self, conversations: Sequence[Tokenized], timeout: float
    ) -> list[T | Exception]:
        """Returns what `run` says of each conversation, or why it says nothing.

        Raises:
            Overloaded: too many wait already; none of these was taken.
        """
        if self.num_queued + len(conversations) > self.config.max_queued and self.num_queued:
            wait = self.num_queued / self._rate if self._rate else 1.0
            raise Overloaded(
                f"{self.num_queued} responses wait, at most {self.config.max_queued}",
                max(1.0, min(wait, 60.0)),
            )
        now, loop = self.clock(), asyncio.get_running_loop()
        waiting = [_Waiting[T](c, now, now + timeout, loop.create_future()) for c in conversations]
        for one in waiting:
            c = one.conversation
            self._groups.setdefault(c.tokens[: min(c.start, KEY_TOKENS)], []).append(one)
        self.num_queued += len(waiting)
        if waiting and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._work())
        return list(await asyncio.gather(*(one.done for one in waiting)))

    async def _work(self) -> None:
        """Runs batches until nothing waits."""
        while self._groups:
            await self._siblings()
            batch = self._take()
            if not batch:
                continue
            begun = self.clock()
            found = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run_apart, [one.conversation for one in batch]
            )
            seconds = self.clock() - begun
            for one, value in zip(batch, found, strict=True):
                if not one.done.done():  # its caller may have gone
                    one.done.set_result(value)
            self._rate = len(batch) / max(seconds, 1e-6)
            self._speed = self._num_tokens / max(seconds, 1e-6)
            self.watch(
                BatchStats(
                    num_responses=len(batch),
                    num_separate_tokens=sum(len(one.conversation.tokens) for one in batch),
                    waited=begun - min(one.arrived for one in batch),
                    seconds=seconds,
                )
            )

    async def _siblings(self) -> None:
        """Waits for more, as long as they keep coming and nothing has waited for too long."""
        ends = min(group[0].arrived for group in self._groups.values()) + self.config.max_wait
        seen = -1
        while seen != self.num_queued and self.clock() < ends:
            seen = self.num_queued
            await self.sleep(self.config.max_wait / LOOKS)

    def _take(self) -> list[_Waiting[T]]:
        """Takes a batch out of the queue: the longest waiting groups, as many as are soon done."""
        batch = list[_Waiting[T]]()
        room = self.config.max_tokens
        soon = room - self._speed * self.config.max_seconds
        for key in list(self._groups):
            if batch and room <= soon:
                break
            room = self._take_of(key, batch, room)
        self._num_tokens = self.config.max_tokens - room
        return batch

    def _take_of(self, key: Key, batch: list[_Waiting[T]], room: int) -> int:
        """Moves what fits of one group into the batch; returns the tokens that are left."""
        now, left, begun = self.clock(), list[_Waiting[T]](), False
        for one in self._groups[key]:
            c = one.conversation
            cost = len(c.tokens) - (c.start if begun else 0)
            if batch and cost > room:
                left.append(one)
                continue
            self.num_queued -= 1
            if one.done.done():  # its caller has gone
                continue
            if now > one.deadline:
                waited = one.deadline - one.arrived
                one.done.set_result(TimeoutError(f"not scored within {waited:g} s"))
                continue
            batch.append(one)
            room, begun = room - cost, True
        if left:
            self._groups[key] = left  # in its place among those that wait
        else:
            del self._groups[key]
        return room

    def _run_apart(self, conversations: Sequence[Tokenized]) -> Sequence[T | Exception]:
        """Runs a batch; of one that fails, its halves, so that one conversation fails alone."""
        try:
            return self.run(conversations)
        except Exception as error:  # whatever a model raises is an answer to its caller
            if len(conversations) == 1:
                return [error]
        middle = len(conversations) // 2
        first, second = conversations[:middle], conversations[middle:]
        return [*self._run_apart(first), *self._run_apart(second)]
