"""Closing of connections that never say what they want, in the process that takes them.

uvicorn, which Ray Serve runs in every node's proxy, waits for ever for the end of a request's head.
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `install`, which the proxy calls before it
listens.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto

from actors.proxy_answers import ProxyAnswers

HEAD_SECONDS = 10.0
"""Seconds until the head of a request has come."""


def impatient(protocol: type[Any], seconds: float) -> type[Any]:
    """Returns uvicorn's protocol with a time limit for the head of every request."""

    class ImpatientProtocol(protocol):
        """Closes a connection without a whole head in time."""

        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            """Starts the time of the first head."""
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Starts the time of a head, or ends it where a request is being answered."""
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._end_wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forgets the time."""
            super().connection_lost(exc)
            self._end_wait()

        def _wait(self) -> None:
            if self._limit is None:
                self._limit = self.loop.call_later(seconds, self.transport.close)

        def _end_wait(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return ImpatientProtocol


def install() -> list[Middleware]:
    """Makes servers that start later in this process impatient; returns what else they do."""
    auto.AutoHTTPProtocol = impatient(auto.AutoHTTPProtocol, HEAD_SECONDS)
    return [Middleware(ProxyAnswers)]
