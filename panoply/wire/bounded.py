"""Reading of other servers' answers with a bound on their bytes and on the time that they take.

An answer is asked for uncompressed, and one that comes compressed is not inflated: 300 kB of gzip
may become 300 MB.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2

MAX_ANSWER = 32 * 2**20
"""Maximum bytes of an answer: 4,096 scores with all of their details have fewer."""
UNCOMPRESSED = {"Accept-Encoding": "identity"}
_ENDS: ContextVar[float] = ContextVar("_ENDS", default=math.inf)
"""Time of `time.monotonic` at which the request of this thread is over."""


class UnreadableAnswer(ValueError):
    """An answer that has too many bytes, or is compressed."""


@dataclass(frozen=True, slots=True)
class BoundedAnswer:
    """Status, headers and body of an answer."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


def ask(http: httpx2.Client, method: str, url: str, seconds: float, **sent: Any) -> BoundedAnswer:
    """Returns an answer that came within the time, however slowly its bytes come.

    Args:
        http: client of the server.
        method: of HTTP.
        url: address of the endpoint.
        seconds: time for the whole answer.
        sent: what `httpx2.Client.stream` takes besides.

    Raises:
        httpx2.RequestError: there is no connection, or it broke; a timeout too.
        UnreadableAnswer: it is too large, or compressed.
    """
    sent |= {"headers": UNCOMPRESSED, "timeout": seconds, "extensions": {"trace": _bound_reads}}
    body = bytearray()
    before = _ENDS.set(time.monotonic() + seconds)
    try:
        with http.stream(method, url, **sent) as response:
            most = _most(response)
            for chunk in response.iter_raw():
                body += chunk
                _check_size(body, most)
            return BoundedAnswer(response.status_code, response.headers, bytes(body))
    finally:
        _ENDS.reset(before)


def _bound_reads(event: str, details: Mapping[str, Any]) -> None:
    """Bounds the reads of a new connection by the time of the request that reads.

    A read's own timeout begins anew with every byte and every interim answer (1xx), of which a
    server may send any number.

    Args:
        event: of the connection, as httpx2's extension `trace` names it.
        details: of the event; of a connection that was made its `return_value`.
    """
    if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
        return
    stream = details["return_value"]
    read = stream.read

    def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
        left = _ENDS.get() - time.monotonic()
        if left <= 0:
            raise httpx2.ReadTimeout("the answer was not over in time")
        return read(max_bytes, left if timeout is None else min(left, timeout))

    stream.read = read_in_time


async def ask_async(
    http: httpx2.AsyncClient, method: str, url: str, seconds: float, **sent: Any
) -> BoundedAnswer:
    """As `ask`."""
    try:
        async with (
            asyncio.timeout(seconds),
            http.stream(method, url, headers=UNCOMPRESSED, timeout=seconds, **sent) as response,
        ):
            body = await read_body(response)
            return BoundedAnswer(response.status_code, response.headers, body)
    except TimeoutError as error:
        raise httpx2.ReadTimeout(f"the answer was not over after {seconds:g} s") from error


async def read_body(response: httpx2.Response) -> bytes:
    """Returns the body of an answer of which nothing was read yet.

    Raises:
        httpx2.RequestError: the connection broke.
        UnreadableAnswer: it is too large, or compressed.
    """
    most, body = _most(response), bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        _check_size(body, most)
    return bytes(body)


def _most(response: httpx2.Response) -> int:
    """Returns the maximum bytes of an answer's body.

    Raises:
        UnreadableAnswer: it is compressed.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnreadableAnswer(
            f"HTTP {response.status_code} is compressed ({encoding[:20]!r}), though it was asked "
            "for as it is: let the server, or the proxy before it, obey `Accept-Encoding: identity`"
        )
    return MAX_ANSWER


def _check_size(body: bytearray, most: int) -> None:
    if len(body) > most:
        raise UnreadableAnswer(f"the answer has more than {most} bytes")
