"""One HTTP request, asked until its time is over.

A request is asked again where that can help: on 429 and 5xx (by the server's Retry-After) and on a
broken connection. Scoring twice does no harm.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import JsonValue

from panoply.wire.request import Payload

RETRIED = (429, 500, 502, 503, 504)
"""500 too: Ray Serve's proxy says it for a gateway that died with the request in hand."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds. Pauses double, and a random half keeps clients from coming back all at once."""

T = TypeVar("T")


class RewardServerError(RuntimeError):
    """The server refused a request, or its answer cannot be read."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message, status)  # so that it survives pickling
        self.status = status
        """Of the answer; 200 where it cannot be read."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float


class RetryingRequest(Generic[T]):
    """What to post where, how an answer is read, and when to give up."""

    def __init__(
        self,
        url: str,
        payload: Callable[[float], Payload],
        read: Callable[[JsonValue], T],
        timeout: float,
    ) -> None:
        """Starts the clock.

        Args:
            url: of the endpoint.
            payload: what is posted, from the seconds that somebody still waits for the answer.
            read: an answer's payload as what it says; raises ValueError where it is none.
            timeout: seconds for all attempts.
        """
        self.url, self.payload, self.read, self.timeout = url, payload, read, timeout
        self.ends = time.monotonic() + timeout
        self.num_failed = 0

    def post(self, http: httpx2.Client) -> T:
        """Returns what the server answered.

        Raises:
            RewardServerError: the server refused the request, or its answer cannot be read.
            TimeoutError: there was no answer in time.
        """
        while True:
            try:
                found = self._answer(http.post(self.url, **self._next()))
            except httpx2.RequestError as error:
                found = self._pause(repr(error))
            if not isinstance(found, _Pause):
                return found
            time.sleep(found.seconds)

    async def post_async(self, http: httpx2.AsyncClient) -> T:
        """As `post`."""
        while True:
            try:
                found = self._answer(await http.post(self.url, **self._next()))
            except httpx2.RequestError as error:
                found = self._pause(repr(error))
            if not isinstance(found, _Pause):
                return found
            await asyncio.sleep(found.seconds)

    def _next(self) -> dict[str, Any]:
        left = max(self.ends - time.monotonic(), 1e-3)
        return {"json": self.payload(left), "timeout": left}

    def _answer(self, response: httpx2.Response) -> T | _Pause:
        if response.status_code == 200:
            try:
                return self.read(response.json())
            except (ValueError, RecursionError) as error:
                raise RewardServerError(f"cannot read what {self.url} answered: {error}") from error
        told = f"HTTP {response.status_code}: {response.text[:500]}"
        if response.status_code not in RETRIED:
            why = f"{self.url} refused the request with {told}"
            raise RewardServerError(why, response.status_code)
        # The header may be a date too; servers that ask to wait for a queue give seconds.
        asked = response.headers.get("retry-after", "")
        return self._pause(told, float(asked) if asked.isdecimal() else None)

    def _pause(self, why: str, asked: float | None = None) -> _Pause:
        """Counts a failure and returns how long to wait, by the server's word or by count."""
        self.num_failed += 1
        longest = min(FIRST_PAUSE * 2 ** (self.num_failed - 1), LONGEST_PAUSE)
        pause = longest * random.uniform(0.5, 1) if asked is None else asked
        if time.monotonic() + pause >= self.ends:
            raise TimeoutError(
                f"{self.url} gave no answer within {round(self.timeout, 2):g} s; attempt "
                f"{self.num_failed} ended with {why}, and the next would be {pause:.1f} s later"
            )
        return _Pause(pause)
