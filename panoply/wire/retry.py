"""HTTP requests that are retried until their time is over.

A request is sent again where that can help: on 429 and 5xx (after the server's Retry-After) and on
a broken connection. Scoring twice does no harm. What a server says is bounded: bytes and time of
its answer, and its Retry-After from below and above.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import JsonValue

from panoply.wire.bounded import BoundedAnswer, UnreadableAnswer, ask, ask_async
from panoply.wire.breaker import CircuitBreaker
from panoply.wire.request import Payload

RETRIED = (429, 500, 502, 503, 504)
"""Statuses that may pass. Ray Serve's proxy returns 500 when a gateway replica dies mid-request."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds. Pauses double, and a random half keeps clients from coming back all at once."""

SHORTEST_WAIT, LONGEST_WAIT = 0.1, 60.0
"""Seconds to which a server's Retry-After is clamped: 0 would ask as fast as the network goes."""
JITTER = 0.25
"""Share of Retry-After that is added at random, so that clients do not return together."""

T = TypeVar("T")


class RewardServerError(RuntimeError):
    """Refusal of a request by the server, or an answer that cannot be read."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message, status)  # so that it survives pickling
        self.status = status
        """Status of the answer; 200 where it cannot be read."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float


class RetryingRequest(Generic[T]):
    """Request that is posted until an answer comes or its time is over."""

    def __init__(
        self,
        url: str,
        payload: Callable[[float], Payload],
        read: Callable[[JsonValue], T],
        timeout: float,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Starts the clock.

        Args:
            url: address of the endpoint.
            payload: returns what to post, from the seconds that are left for the answer.
            read: parses an answer's payload; raises ValueError where it is none.
            timeout: seconds for all attempts.
            breaker: counts the server's failures.
        """
        self.breaker = breaker or CircuitBreaker()
        self.url, self.payload, self.read, self.timeout = url, payload, read, timeout
        self.begun = time.monotonic()
        """Begin of the latest attempt."""
        self.ends = self.begun + timeout
        self.num_failed = 0
        self.reason = ""
        """Reason why the latest attempt failed."""

    def post(self, http: httpx2.Client) -> T:
        """Returns the server's answer.

        Raises:
            RewardServerError: the server refused the request, or its answer cannot be read.
            TimeoutError: there was no answer in time.
        """
        while True:
            try:
                result = self._answer(ask(http, "POST", self.url, **self._next()))
            except UnreadableAnswer as error:
                raise self._unreadable(error) from error
            except httpx2.RequestError as error:
                result = self._pause(repr(error))
            if not isinstance(result, _Pause):
                return result
            time.sleep(result.seconds)

    async def post_async(self, http: httpx2.AsyncClient) -> T:
        """As `post`."""
        while True:
            try:
                result = self._answer(await ask_async(http, "POST", self.url, **self._next()))
            except UnreadableAnswer as error:
                raise self._unreadable(error) from error
            except httpx2.RequestError as error:
                result = self._pause(repr(error))
            if not isinstance(result, _Pause):
                return result
            await asyncio.sleep(result.seconds)

    def _next(self) -> dict[str, Any]:
        self.begun = time.monotonic()
        left = max(self.ends - self.begun, 1e-3)
        return {"json": self.payload(left), "seconds": left}

    def _answer(self, answer: BoundedAnswer) -> T | _Pause:
        if answer.status == 200:
            try:
                result = self.read(json.loads(answer.body))
            except (ValueError, RecursionError) as error:
                raise self._unreadable(error) from error
            self.breaker.succeeded()
            return result
        refusal = f"HTTP {answer.status}: {answer.text[:500]}"
        if answer.status not in RETRIED:
            self.breaker.succeeded()  # it answers, though not with a score
            why = f"{self.url} refused the request with {refusal}"
            raise RewardServerError(why, answer.status)
        # The header may be a date too; servers that ask to wait for a queue give seconds.
        retry_after = answer.headers.get("retry-after", "")
        return self._pause(refusal, float(retry_after) if retry_after.isdecimal() else None)

    def _unreadable(self, error: Exception) -> RewardServerError:
        self.breaker.failed(time.monotonic() - self.begun)
        return RewardServerError(f"cannot read what {self.url} answered: {error}")

    def _pause(self, why: str, retry_after: float | None = None) -> _Pause:
        """Counts a failure and returns the pause: the server's, or one that grows by the count."""
        self.num_failed += 1
        if retry_after is None:  # else it is busy, and says so
            self.breaker.failed(time.monotonic() - self.begun)
        longest = min(FIRST_PAUSE * 2 ** (self.num_failed - 1), LONGEST_PAUSE)
        if retry_after is None:
            pause = longest * random.uniform(0.5, 1)
        else:
            # A server that says 0 again and again is asked ever less often, too.
            wait = min(max(retry_after, SHORTEST_WAIT * self.num_failed), LONGEST_WAIT)
            pause = wait * random.uniform(1, 1 + JITTER)
        before, self.reason = self.reason, why
        now = time.monotonic()
        if now + pause < self.ends:
            return _Pause(pause)
        number, rest = self.num_failed, f"and the next would be {pause:.1f} s later"
        if before and now >= self.ends:  # an attempt that the time itself ended says nothing
            number, why, rest = number - 1, before, "and the next had no time to end"
        raise TimeoutError(
            f"{self.url} gave no answer within {round(self.timeout, 2):g} s; attempt {number} "
            f"ended with {why}, {rest}"
        )
