"""Checks of every request and marks on every answer, whatever its path: host, slashes, type."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.intake import check_host
from panoply.wire import vllm
from panoply.wire.request import RequestError


class Hardened:
    """Refuses requests for other hosts, and adds to every answer that its type holds.

    A slash behind a path is taken for none.

    Args:
        app: answers.
        hosts: see `Intake`.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, root = scope["path"], scope.get("root_path", "")
        try:
            check_host(Request(scope), self.hosts)
        except RequestError as error:
            return await refusal(error)(scope, receive, send_marked)
        if root and path == root:  # the place of a server on its cluster: its page stands below it
            moved = RedirectResponse(f"{root.rpartition('/')[2]}/")
            return await moved(scope, receive, send_marked)
        if path.endswith("/") and len(path) > len(root) + 1:
            scope = {**scope, "path": path.rstrip("/")}
        return await self.app(scope, receive, send_marked)


def refusal(error: RequestError) -> JSONResponse:
    """Returns the answer to a request that reaches no dialect."""
    status, payload = vllm.refuse(error)
    return JSONResponse(payload, status, refusal_headers(error))


def refusal_headers(refused: RequestError) -> dict[str, str]:
    """Returns the headers that belong to a refusal."""
    headers: dict[str, str] = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after)))
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="panoply"'
    if refused.status == 408:
        headers["Connection"] = "close"  # the rest of the body may never come
    return headers
