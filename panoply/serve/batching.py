"""Dynamic batching: a queue of conversations -> batches under a token budget, prompts kept whole.

A forward runs in a thread of its own; conversations that arrive meanwhile wait for the next. None
is overtaken for ever: the group whose first member came first goes first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from panoply.config.serve import BatchConfig
from panoply.model.gather import Tokenized

LOG = logging.getLogger("ray.serve")
"""Logger of Ray Serve, which writes to the log of the replica."""
T = TypeVar("T")
KEY_TOKENS = 64
"""Beginning of a prompt by which waiting conversations are grouped; which of them become one tree
is decided by all of their tokens."""
NUM_SAMPLED = 16
"""Tokens of a prompt by which the queue's length is counted."""
NUM_POLLS = 5
"""Times that the wait for siblings checks whether more of them came."""
WAIT_SHARE = 0.25
"""Longest wait for siblings of a long text, as a share of the time that its forward takes."""
PAUSE_SHARE = 0.02
"""The same of a pause in which none came: all that a text without siblings waits."""


class Overloaded(RuntimeError):
    """The queue is full; `retry_after` holds the seconds after which it may not be."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after


class OversizedRequest(ValueError):
    """A request has more tokens than may ever wait."""


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Size and times of one batch."""

    num_responses: int
    num_separate_tokens: int
    """Tokens of its conversations, each by itself."""
    waited: float
    """Seconds that its oldest response waited."""
    seconds: float
    """Duration of its forward."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    conversation: Tokenized
    cost: int
    """Tokens by which it makes the queue longer."""
    arrived: float
    deadline: float
    done: asyncio.Future[T | Exception]


Key: TypeAlias = tuple[Hashable, tuple[int, ...]]
"""What has a forward of its own, and the beginning of a prompt."""


def _costs(conversations: Sequence[Tokenized]) -> list[int]:
    """Returns the tokens of each conversation, without a prompt that one before it brings.

    Prompts are taken for the same by their size and some of their tokens.
    """
    costs: list[int] = []
    seen: set[tuple[int, ...]] = set()
    for c in conversations:
        prompt = (c.start, *c.tokens[: c.start : max(1, c.start // NUM_SAMPLED)])
        costs.append(len(c.tokens) - (c.start if prompt in seen else 0))
        seen.add(prompt)
    return costs


@dataclass(slots=True, eq=False)
class Batcher(Generic[T]):
    """A queue in front of one model.

    Args:
        run: scores conversations, in order; called in a thread, never twice at once.
        config: limits of a batch and of the queue.
        watch: called with the statistics of every batch.
        kind: of a conversation; those of unlike kinds have a forward each, so that a batch is
            filled up with those of the first one's kind before others.
        clock: seconds, from any start.
        sleep: waits for so many seconds of that clock.
    """

    run: Callable[[Sequence[Tokenized]], Sequence[T]]
    config: BatchConfig
    watch: Callable[[BatchStats], None] = lambda _: None
    kind: Callable[[Tokenized], Hashable] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _groups: dict[Key, list[_Waiting[T]]] = field(default_factory=dict[Key, "list[_Waiting[T]]"])
    num_queued: int = 0
    """Responses in the queue."""
    num_queued_tokens: int = 0
    """Tokens in the queue; the prompt of a group counts once for those that came together."""
    forward_begun: float | None = None
    """Begin of the forward that runs, by the clock; None while none does."""
    _rate: float = 0.0
    """Responses per second of the last forward."""
    _speed: float = 0.0
    """Tokens per second of the last forward."""
    _num_tokens: int = 0
    """Tokens of the batch that was taken last."""
    _task: asyncio.Task[None] | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "forward"))

    async def score(
        self, conversations: Sequence[Tokenized], timeout: float
    ) -> list[T | Exception]:
        """Queues conversations and returns the output of `run` for each, or its error.

        Raises:
            Overloaded: too many wait already; none of these was taken.
            OversizedRequest: these alone are too many.
        """
        costs = _costs(conversations)
        if sum(costs) > self.config.max_queued_tokens:
            most = self.config.max_queued_tokens
            raise OversizedRequest(f"{sum(costs)} tokens in one request, at most {most}")
        self.check_room(len(conversations), sum(costs))
        now, loop = self.clock(), asyncio.get_running_loop()
        waiting: list[_Waiting[T]] = []
        for c, cost in zip(conversations, costs, strict=True):
            key = self.kind(c), c.tokens[: min(c.start, KEY_TOKENS)]
            entry = _Waiting[T](c, cost, now, now + timeout, loop.create_future())
            self._groups.setdefault(key, []).append(entry)
            waiting.append(entry)
        self.num_queued += len(waiting)
        self.num_queued_tokens += sum(costs)
        if waiting and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._work())
        return list(await asyncio.gather(*(entry.done for entry in waiting)))

    def check_room(self, num_responses: int, num_tokens: int = 0, num_coming: int = 0) -> None:
        """Checks that so much more may wait; an empty queue takes any request.

        Args:
            num_responses: responses of the request.
            num_tokens: its tokens, as far as they are known.
            num_coming: responses of others that will wait soon.

        Raises:
            Overloaded: it may not.
        """
        num_waiting = self.num_queued + num_coming
        if not num_waiting:
            return
        wait = max(1.0, min(self.num_queued / self._rate if self._rate else 1.0, 60.0))
        if num_waiting + num_responses > self.config.max_queued:
            why = f"{num_waiting} responses wait, at most {self.config.max_queued}"
            raise Overloaded(why, wait)
        if self.num_queued_tokens + num_tokens > self.config.max_queued_tokens:
            most = self.config.max_queued_tokens
            raise Overloaded(f"{self.num_queued_tokens} tokens wait, at most {most}", wait)

    @property
    def forward_seconds(self) -> float:
        """Seconds since the forward that runs has begun; 0 while none does."""
        return 0.0 if self.forward_begun is None else self.clock() - self.forward_begun

    async def _work(self) -> None:
        """Runs batches until nothing waits; a fault of one of them is its callers' answer."""
        while self._groups:
            await self._wait_for_siblings()
            batch = self._take()
            try:
                if batch:
                    await self._run(batch)
            except Exception as error:  # of the thread or the watcher: the next batch needs neither
                LOG.error("a batch ended with %s", type(error).__name__)
                for entry in batch:
                    if not entry.done.done():
                        entry.done.set_result(error)
            finally:
                self.forward_begun = None

    async def _run(self, batch: Sequence[_Waiting[T]]) -> None:
        """Runs one batch, hands its outputs on, and tells of it."""
        self.forward_begun = begun = self.clock()
        outputs = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._bisect, [entry.conversation for entry in batch]
        )
        seconds = self.clock() - begun
        for entry, output in zip(batch, outputs, strict=True):
            if not entry.done.done():  # its caller may have gone
                entry.done.set_result(output)
        self._rate = len(batch) / max(seconds, 1e-6)
        self._speed = self._num_tokens / max(seconds, 1e-6)
        self.watch(
            BatchStats(
                num_responses=len(batch),
                num_separate_tokens=sum(len(entry.conversation.tokens) for entry in batch),
                waited=begun - min(entry.arrived for entry in batch),
                seconds=seconds,
            )
        )

    async def _wait_for_siblings(self) -> None:
        """Waits for more, as long as they keep coming and nothing has waited for too long.

        Responses to one prompt come one by one where each is a request. Those that come after the
        first has begun need the prompt computed again, so a long text waits longer.
        """
        first = min((group[0] for group in self._groups.values()), key=lambda entry: entry.arrived)
        seconds = first.cost / self._speed if self._speed and self.config.max_wait else 0.0
        ends = first.arrived + max(self.config.max_wait, WAIT_SHARE * seconds)
        pause = max(self.config.max_wait / NUM_POLLS, PAUSE_SHARE * seconds)
        seen = -1
        while seen != self.num_queued and self.clock() < ends:
            seen = self.num_queued
            await self.sleep(pause)

    def _take(self) -> list[_Waiting[T]]:
        """Takes a batch out of the queue: the longest waiting groups, for about `max_seconds`."""
        batch: list[_Waiting[T]] = []
        room = self.config.max_tokens
        # Room that is left when the batch holds about `max_seconds` of work, at the last speed.
        enough = room - self._speed * self.config.max_seconds
        oldest, _ = next(iter(self._groups))
        # Sorting keeps the order of those that are alike: the longest waiting group stays first.
        for key in sorted(self._groups, key=lambda key: key[0] != oldest):
            if batch and room <= enough:
                break
            room = self._take_of(key, batch, room)
        self._num_tokens = self.config.max_tokens - room
        return batch

    def _take_of(self, key: Key, batch: list[_Waiting[T]], room: int) -> int:
        """Moves what fits of one group into the batch; returns the tokens that are left."""
        now = self.clock()
        left: list[_Waiting[T]] = []
        has_prompt = False
        for entry in self._groups[key]:
            c = entry.conversation
            # The group's prompt is computed once.
            cost = len(c.tokens) - (c.start if has_prompt else 0)
            if batch and cost > room:
                left.append(entry)
                continue
            self.num_queued -= 1
            self.num_queued_tokens -= entry.cost
            if entry.done.done():  # its caller has gone
                continue
            if now > entry.deadline:
                waited = entry.deadline - entry.arrived
                entry.done.set_result(TimeoutError(f"not scored within {waited:g} s"))
                continue
            batch.append(entry)
            room -= cost
            has_prompt = True
        if left:
            self._groups[key] = left  # in its place among those that wait
        else:
            del self._groups[key]
        return room

    def _bisect(self, conversations: Sequence[Tokenized]) -> Sequence[T | Exception]:
        """Runs a batch, and the halves of one that fails: a bad conversation fails alone."""
        try:
            return self.run(conversations)
        except Exception as error:  # whatever a model raises is an answer to its caller
            if len(conversations) == 1:
                return [error]
        middle = len(conversations) // 2
        first, second = conversations[:middle], conversations[middle:]
        return [*self._bisect(first), *self._bisect(second)]
