"""A server's limits: what is sent to it keeps a pace, and what comes back is bounded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import httpx2

from panoply.config.judge import ServerSettings
from panoply.scorers.endpoint import HUNG_SECONDS
from panoply.secret import authorization
from panoply.wire.bounded import UnreadableAnswer, ask, read_body
from panoply.wire.breaker import CircuitBreaker
from panoply.wire.retry import RETRIED

PATH = "/chat/completions"
ADVICE = "a base address mostly ends with /v1, as http://HOST:8000/v1#MODEL"
PROBE_SECONDS = 5.0
"""Seconds in which a server may say that it speaks another protocol."""


class Pace:
    """Budget that fills at a rate, from which takers get their share in the order they come.

    Args:
        rate: units a second; 0: no limit.
        clock: seconds, from any start.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.clock = rate, clock
        self._free_at = 0.0
        """Time from which nothing is owed."""

    def take(self, amount: float) -> float:
        """Takes an amount, and returns the seconds after which it may be used."""
        if not self.rate:
            return 0.0
        now = self.clock()
        begin = max(now, self._free_at)
        self._free_at = begin + amount / self.rate
        return begin - now

    def charge(self, amount: float) -> None:
        """Takes what was used beyond the amount taken before; a negative one is given back."""
        if self.rate:
            self._free_at = max(self.clock(), self._free_at + amount / self.rate)


class LimitedHttp(httpx2.AsyncClient):
    """HTTP client that keeps a pace, reads bounded bodies, and follows no redirection.

    Args:
        breaker: counts the server's failures; who reads an answer tells it of a success.
        requests: pace of requests, those that are sent again too.
        concurrency: maximum connections.
    """

    def __init__(self, breaker: CircuitBreaker, requests: Pace, concurrency: int) -> None:
        super().__init__(limits=httpx2.Limits(max_connections=concurrency))
        self._breaker, self._requests = breaker, requests

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Returns an answer with its whole body; an empty one where it cannot be read.

        Raises:
            httpx2.RequestError: there is no connection, or it broke.
        """
        await asyncio.sleep(self._requests.take(1))
        begun = time.monotonic()
        options["stream"] = True
        try:
            response = await super().send(request, **options)
            try:
                body = await read_body(response)
            except UnreadableAnswer:
                body = b""
            finally:
                await response.aclose()
        except httpx2.RequestError:
            self._breaker.failed(time.monotonic() - begun)
            raise
        except asyncio.CancelledError:
            if time.monotonic() - begun >= HUNG_SECONDS:
                self._breaker.failed(time.monotonic() - begun)
            raise
        is_busy = bool({"retry-after", "retry-after-ms"} & {*response.headers})
        if response.status_code in RETRIED and not is_busy:
            self._breaker.failed(time.monotonic() - begun)
        elif response.status_code != 200:
            self._breaker.succeeded()  # it answers, though not with a verdict
        headers = {
            name: value
            for name, value in response.headers.items()
            if name in ("content-type", "retry-after", "retry-after-ms")
        }
        status = response.status_code
        return httpx2.Response(status, headers=headers, content=body, request=request)


def check_speaks(server: ServerSettings) -> None:
    """Checks that an address is none of a page or of another protocol, where anybody answers.

    An empty request is sent, which costs nothing. A server that cannot be reached, or that fails,
    may be there later.

    Raises:
        ValueError: it answers with a page, or has no such path.
    """
    address = server.address
    base = httpx2.URL(address.url)
    url = str(base.copy_with(path=base.path.rstrip("/") + PATH))
    key = os.environ.get(address.key_variable, "") if address.key_variable else ""
    headers = {"Authorization": authorization(key)} if key else {}
    try:
        with httpx2.Client(headers=headers) as http:
            answer = ask(http, "POST", url, PROBE_SECONDS, json={})
    except (httpx2.HTTPError, UnreadableAnswer):
        return
    if answer.status >= 500:
        return
    start = answer.body[:1000].lstrip().lower()
    if start.startswith(b"<"):
        raise ValueError(
            f"`server.url`: {url} answers HTTP {answer.status} with a page, as no OpenAI-"
            f"compatible server does: {ADVICE}"
        )
    # A server that has the path names what an empty request lacks, as an `error`.
    if answer.status in (404, 405) and b'"error"' not in start:
        raise ValueError(
            f"`server.url`: {url} answers HTTP {answer.status}, as no OpenAI-compatible server "
            f"does: {ADVICE}"
        )
