"""Answers of Ray Serve's proxy in the shape of ours: they say what failed, and when to ask again.

The proxy answers by itself where the replica that held a request is gone (500), and where it knows
no application at a path (404), as in its first seconds, before it has heard of any. Both are plain
text, and a client takes the 404 for final.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from panoply.wire import vllm
from panoply.wire.request import RequestError

UNSETTLED_SECONDS = 60.0
"""Time after its start in which a proxy may not have heard of an application."""
UNKNOWN_PATH = b"Path '"
"""Beginning of what Ray Serve says of a path at which it knows no application."""


class ProxyAnswers:
    """Turns the proxy's own answers to failures that pass into 503 with a reason.

    Args:
        app: answers.
        clock: seconds.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.clock, self.begun = app, clock, clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        held: Message | None = None
        """Start of an answer 404, until its text says whose it is."""
        has_begun = False

        async def checked(message: Message) -> None:
            nonlocal held, has_begun
            if message["type"] == "http.response.start":
                if message["status"] == 404 and self.clock() - self.begun < UNSETTLED_SECONDS:
                    held = message
                    return
                has_begun = True
            elif held is not None:
                start, held, has_begun = held, None, True
                if message.get("body", b"").startswith(UNKNOWN_PATH):
                    return await refuse(send, "this server is starting: ask again")
                await send(start)
            await send(message)

        await self.app(scope, receive, checked)
        if not has_begun:  # Ray Serve gives up in silence, and its HTTP server says 500
            await refuse(send, "the gateway that held this request is gone: ask again")


async def refuse(send: Send, reason: str) -> None:
    """Sends an answer 503 with a reason."""
    status, payload = vllm.refuse(RequestError(reason, 503))
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(payload).encode()})
