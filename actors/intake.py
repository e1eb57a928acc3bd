"""Intake of a request: who sends it, then its body, then what it asks.

Each step costs little beside what the one before it lets through: a request without the right key
is refused by its headers, a body has a limit of bytes and a deadline, and one that is not small is
parsed in a thread, so that it holds up nobody else's.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from panoply.serve.access import Caller, KeyRing, RateLimits
from panoply.wire.dialect import DialectPayload, Endpoint, decode
from panoply.wire.limits import RequestLimits
from panoply.wire.request import RequestError, ScoreRequest
from panoply.wire.routes import endpoint_at

SMALL_BYTES = 32 * 2**10
"""Bytes of a body that is parsed at once; a thread for it would cost more."""
STRANGER_BYTES = 2**20
"""Maximum bytes of a body, where keys are asked for and neither a key nor the path names a model
that the sender may ask."""
HELD_BYTES = 256 * 2**20
"""Maximum bytes of all bodies that are held at the same time."""
BODY_SECONDS = 30.0
"""Maximum seconds until a body is read."""
MAX_PARSERS = 2
"""Threads that parse."""


class Readable(Protocol):
    """A call whose body is still to be read."""

    def read(self, body: bytes, limits: RequestLimits) -> None:
        """Parses a body.

        Raises:
            RequestError: it is wrong, or asks too much.
        """
        ...


class Call:
    """A payload at a path, and the endpoint that answers it; `read` has to be called first."""

    typed: DialectPayload
    request: ScoreRequest

    def __init__(self, path: str) -> None:
        self.path = path
        self.endpoint: Endpoint = endpoint_at(path)
        """Endpoint of the path, or the very one that the payload is for once that is known."""

    def read(self, body: bytes, limits: RequestLimits) -> None:
        """Parses a body.

        Raises:
            RequestError: it is wrong, or asks too much.
        """
        payload = decode(body, limits)
        self.endpoint = endpoint_at(self.path, payload)
        self.typed = self.endpoint.parse(payload)
        self.request = limits.check(self.typed.request())


@dataclass(slots=True)
class Intake:
    """Checks and reads requests.

    Args:
        limits: the most that a request may ask.
        keys: of the models that ask for one.
        rates: budgets of the keys.
        hosts: names of a server on loopback, beside its addresses and `localhost`.
        is_closed: whether every model asks for a key.
    """

    limits: RequestLimits
    keys: KeyRing
    rates: RateLimits
    hosts: frozenset[str] = frozenset()
    is_closed: bool = False
    num_held: int = 0
    """Bytes of the bodies that are held."""
    parsers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_PARSERS, "parse")
    )

    def caller(self, request: Request, model: str | None) -> Caller:
        """Returns who sends a request, by its headers alone.

        Args:
            request: its body is not touched.
            model: name in its path, where there is one.

        Raises:
            RequestError: 401 where no model can be asked without a key, or not this one; 403 from a
                page of another origin; 415 for a compressed body; 429 beyond the key's rate.
        """
        check_origin(request)
        caller = self.keys.caller(request.headers)
        if model:
            self.keys.check(caller, [model])
        elif self.is_closed and not caller.opens:
            self.keys.check(caller, sorted(self.keys.protected)[:1])
        self.rates.check(caller)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":  # a megabyte may become a thousand
            raise RequestError(
                f"a body in the encoding {encoding[:20]!r} is not read: send it as it is", 415
            )
        return caller

    async def read(
        self, request: Request, caller: Caller, call: Readable, model: str | None
    ) -> None:
        """Reads a body into a call.

        Raises:
            RequestError: it is wrong, too large or too slow.
        """
        may_ask = caller.opens or not self.keys.protected or model
        most = self.limits.max_bytes if may_ask else min(STRANGER_BYTES, self.limits.max_bytes)
        body = bytearray()
        try:
            await self._receive(request, body, most)
            if len(body) <= SMALL_BYTES:
                call.read(bytes(body), self.limits)
            else:
                await self._in_thread(lambda: call.read(bytes(body), self.limits))
        finally:
            self.num_held -= len(body)

    async def _receive(self, request: Request, body: bytearray, most: int) -> None:
        """Appends what a client sends to the body, and counts it as held.

        Raises:
            RequestError: 408 where it is too slow, 413 beyond `most` bytes, 429 where too much is
                held, 400 for a client that goes before the end.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self.num_held += len(chunk)
                    if len(body) > most:
                        raise _too_large(most)
                    if self.num_held > HELD_BYTES:
                        raise RequestError("the server holds too many large requests", 429, 1.0)
        except ClientDisconnect as error:
            raise RequestError("the connection ended before the body did") from error
        except TimeoutError as error:
            raise RequestError(f"the body was not sent within {BODY_SECONDS:g} s", 408) from error

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.parsers, work)


def _too_large(most: int) -> RequestError:
    return RequestError(
        f"the body has more than {most} bytes: send several requests; where models ask for a key, "
        f"more than {STRANGER_BYTES} bytes need a key, or a path `/models/NAME/...`",
        413,
    )


def check_host(request: Request, hosts: frozenset[str]) -> None:
    """Checks that a request names this server, where it listens on loopback.

    A name that a page's server points to loopback (DNS rebinding) stands in `Host`.

    Raises:
        RequestError: 421 for another host.
    """
    host = request.headers.get("host", "")
    server = (request.scope.get("server") or ("", None))[0]
    if _is_loopback(server) and not _is_own_name(host, hosts):
        raise RequestError(
            f"{host[:100]!r} is no name of this server, which listens on loopback: ask "
            "http://localhost, or name it in `--gateway.hosts`",
            421,
        )


def check_origin(request: Request) -> None:
    """Checks that a browser sends a request for this server's own page.

    A browser adds `Origin` to what a page sends elsewhere, and to nothing else that matters here.

    Raises:
        RequestError: 403 for another origin, or JSON under another type.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return
    if origin.partition("://")[2].lower() != request.headers.get("host", "").lower():
        raise RequestError("a page of another origin may not ask this server", 403)
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise RequestError("a page has to send `Content-Type: application/json`", 403)


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return False


def _is_own_name(host: str, hosts: frozenset[str]) -> bool:
    """Returns whether a `Host` names a server on loopback; an address cannot be rebound."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not host  # HTTP/1.0, which no browser speaks
    return True
