"""The gateway over HTTP: every dialect at its path, the page, the models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from ray.util.metrics import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import panoply.report
from actors.gateway import Gateway
from actors.internal_error import internal_error
from panoply.wire import tei, vllm
from panoply.wire.dialect import RequestLimits, decode
from panoply.wire.request import RequestError, ScoreRequest, num_truncated
from panoply.wire.routes import ENDPOINTS, endpoint_at

PAGE = Path(__file__).parents[1] / "web"
BASE_STYLE = Path(panoply.report.__file__).with_name("base.css")
"""Style that the page of a run has too."""
PREFIX = "/models/{name}"
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
TRUNCATED = "X-Truncated-Texts"
"""Header with the number of texts that the models' limits cut; left out where none was."""
VERSIONS = "X-Model-Versions"
"""Header with the version of each model that scored, as `NAME=NUMBER`."""
ABOUT = """Scores by several reward models, in the words of the client's own protocol.

Every path of a protocol also stands behind `/models/NAME`, which names the model."""


def make_app(
    gateway: Gateway,
    limits: RequestLimits,
    keys: Mapping[str, str],
    agents: Callable[[], Awaitable[Sequence[str]]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    run: str = "",
) -> FastAPI:
    """Returns the HTTP application.

    Args:
        gateway: answers requests.
        limits: the most that a request may ask.
        keys: API key of each model that asks for one.
        agents: returns the URLs of the nodes' metrics.
        lifespan: context that is open while the application runs.
        run: id of this start of the server, shown at `/health`.
    """
    app = FastAPI(title="Panoply", description=ABOUT, version="1", lifespan=lifespan)
    metrics = GatewayMetrics()

    async def score(request: Request) -> Response:
        path, name = _path(request), request.path_params.get("name")
        begun, endpoint, headers = time.monotonic(), endpoint_at(path), dict[str, str]()
        try:
            payload = decode(await _body(request, limits.max_bytes), limits)
            endpoint = endpoint_at(path, payload)
            typed = endpoint.parse(payload)
            score_request = gateway.named(limits.check(typed.request()), name)
            _check_keys(request, score_request, keys)
            answer = await gateway.score(score_request)
            status, body = 200, _json(typed.render(answer, score_request))
            headers[VERSIONS] = ", ".join(f"{quote(m.model)}={m.version}" for m in answer.models)
            if cut := num_truncated(answer):
                headers[TRUNCATED] = str(cut)
            metrics.scored(score_request, time.monotonic() - begun)
        except Exception as error:
            refused = error if isinstance(error, RequestError) else internal_error(path, error)
            status, refusal = endpoint.refuse(refused)
            body = _json(refusal)
            if refused.retry_after is not None:
                headers["Retry-After"] = str(max(1, round(refused.retry_after)))
        metrics.answered(path, status, time.monotonic() - begun)
        return Response(body, status, headers, "application/json")

    for path in PATHS:
        for prefix in ("", PREFIX):
            described = _described(prefix, path)
            app.add_api_route(_route(prefix, path), score, methods=["POST"], **described)

    _add_models(app, gateway, limits)
    _add_refusals(app)

    @app.get("/health", summary="200 while a model can answer.")
    def health() -> JSONResponse:
        states = {entry["id"]: entry["state"] for entry in gateway.directory()}
        well = any(state != "failed" for state in states.values())
        status = "ok" if well else "no model works"
        return JSONResponse({"status": status, "models": states, "run": run}, 200 if well else 503)

    @app.get("/metrics", summary="Prometheus metrics of all nodes.")
    async def node_metrics() -> PlainTextResponse:
        return PlainTextResponse(await _relayed(await agents()))

    _add_page(app)
    app.openapi = lambda: _openapi(app)
    return app


def _add_page(app: FastAPI) -> None:
    """Adds the page for people, whose style is in part that of a run's page."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/page/base.css", include_in_schema=False)
    def base_style() -> FileResponse:
        return FileResponse(BASE_STYLE)

    app.mount("/page", StaticFiles(directory=PAGE), "page")


def _add_models(app: FastAPI, gateway: Gateway, limits: RequestLimits) -> None:
    """Adds the routes that describe the models."""

    @app.get("/v1/models", summary="The models, with their state and objectives.")
    def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": gateway.directory()})

    @app.get("/v1/models/{name}", summary="One model, with its state and objectives.")
    def model(name: str) -> JSONResponse:
        return JSONResponse(gateway.entry(name))

    @app.get("/info", summary="The default model, as TEI's clients ask for it.")
    @app.get(PREFIX + "/info", summary="A model, as TEI's clients ask for it.")
    def info(name: str = "") -> JSONResponse:
        return JSONResponse(tei.info(gateway.entry(name or gateway.default), limits))


def _add_refusals(app: FastAPI) -> None:
    """Adds the answers to a name that no model has, and to a path that is no endpoint."""

    @app.exception_handler(RequestError)
    def refuse(_: Request, error: RequestError) -> JSONResponse:
        status, refusal = vllm.refuse(error)
        return JSONResponse(refusal, status)

    @app.exception_handler(HTTPException)
    def no_endpoint(request: Request, error: HTTPException) -> JSONResponse:
        status, refusal = vllm.refuse(RequestError(_directions(request), error.status_code))
        return JSONResponse(refusal, status, error.headers)


def _directions(request: Request) -> str:
    """Returns a hint for a path or method that is no endpoint."""
    path = request.url.path
    name = re.sub(r"^/models/[^/]+|/v[12](?=/)", "", path).strip("/")
    elsewhere = f"{ELSEWHERE[name]}. " if name in ELSEWHERE else ""
    return (
        f"{request.method} {path[:100]} is no endpoint here. {elsewhere}Scores are asked with POST "
        f"at {', '.join(PATHS)}, each also behind `/models/NAME`; `/docs` describes them, and GET "
        "/v1/models lists the models"
    )


class GatewayMetrics:
    """Prometheus metrics of requests."""

    def __init__(self) -> None:
        seconds = "Seconds until answered."
        self.count = Counter("panoply_requests_total", "Requests.", ("path", "status"))
        self.seconds = Histogram("panoply_request_seconds", seconds, SECONDS, ("path",))
        self.of_model = Histogram("panoply_model_seconds", seconds, SECONDS, ("model",))

    def scored(self, request: ScoreRequest, seconds: float) -> None:
        """Counts a request that was scored."""
        for model in request.models:
            self.of_model.observe(seconds, {"model": model})

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request, whatever its status."""
        self.count.inc(1, {"path": path, "status": str(status)})
        self.seconds.observe(seconds, {"path": path})


def _path(request: Request) -> str:
    """Returns the dialect's path: the route's, without the prefix that names a model."""
    return request.scope["route"].path.removeprefix(PREFIX) or "/"


def _route(prefix: str, path: str) -> str:
    """Returns the route of a dialect's path; a bare `/` behind a prefix is the prefix itself."""
    return prefix if prefix and path == "/" else prefix + path


async def _body(request: Request, most: int) -> bytes:
    """Returns the body, reading at most the allowed bytes.

    Raises:
        RequestError: 413 beyond that, 400 for a client that goes before its end.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                why = f"the body has more than {most} bytes: send several requests"
                raise RequestError(why, 413)
    except ClientDisconnect as error:
        raise RequestError("the connection ended before the body did") from error
    return bytes(body)


def _check_keys(request: Request, score_request: ScoreRequest, keys: Mapping[str, str]) -> None:
    """Checks the key of every requested model that has one.

    Raises:
        RequestError: 401 if it was not sent, or is another.
    """
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    sent = (sent or request.headers.get("x-api-key", "")).encode(errors="replace")
    for name in score_request.models:
        if name in keys and not secrets.compare_digest(sent, keys[name].encode()):
            raise RequestError(
                f"model {name!r} asks for its API key, as `Authorization: Bearer KEY`", 401
            )


def _json(answer: Any) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, default=dict).encode()


async def _relayed(agents: Sequence[str]) -> str:
    """Returns our own metrics of all nodes; a node that does not answer is left out."""
    async with httpx2.AsyncClient(timeout=5.0) as client:
        answers = await asyncio.gather(*map(client.get, agents), return_exceptions=True)
    lines: dict[str, None] = {}  # in order, each once
    for answer in answers:
        if isinstance(answer, httpx2.Response):
            lines |= dict.fromkeys(x for x in answer.text.splitlines() if "panoply_" in x)
    return "\n".join([*lines, ""])


PATHS = list(dict.fromkeys(chain.from_iterable(endpoint.paths for endpoint in ENDPOINTS)))
"""Paths of all dialects."""

NO_TEXT = (
    "The models here score and write no text: ask `/v1/rewards`, or `/classify` with `messages`"
)
NO_TOKENS = (
    "Texts are tokenized by the model that scores them: send text or messages, or tokenize with "
    "the tokenizer in the model's folder"
)
NO_EMBEDDING = (
    "A reward model has no embedding of a text: `/predict` and `/rerank` answer scores, and "
    "`/v1/embeddings` a score as a vector of one"
)
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("chat/completions", "completions", "generate", "responses"), NO_TEXT),
    **dict.fromkeys(("tokenize", "detokenize", "decode"), NO_TOKENS),
    **dict.fromkeys(
        ("embed", "embed_all", "embed_sparse", "embeddings", "similarity"), NO_EMBEDDING
    ),
}
"""Hints by a path of other servers, without version."""

REFUSALS: dict[int | str, str] = {
    400: "The body is wrong; the message names the key, its value and what is allowed.",
    401: "The model asks for a key.",
    404: "No model has this name.",
    413: "Too much for one request.",
    422: "A text cannot be scored.",
    424: "A text cannot be scored (TEI).",
    429: "The model is busy; `Retry-After` says for how long.",
    500: "An unexpected error; the log says where.",
    503: "The model cannot answer now.",
}

REFS, SCHEMAS = models_json_schema(
    [(endpoint.payload, "validation") for endpoint in ENDPOINTS],
    ref_template="#/components/schemas/{model}",
)
"""Schemas of the dialects' payloads: FastAPI does not see them, since keys choose among them."""


def _described(prefix: str, path: str) -> dict[str, Any]:
    """Returns a path's description for OpenAPI: the payloads of the dialects that share it."""
    at = [endpoint for endpoint in ENDPOINTS if path in endpoint.paths]
    bodies = [REFS[endpoint.payload, "validation"] for endpoint in at]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    extra: dict[str, Any] = {"requestBody": body}
    if prefix:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        extra["parameters"] = [name]
    summaries = [(endpoint.payload.__doc__ or "").splitlines()[0] for endpoint in at]
    return {
        "tags": [endpoint.dialect for endpoint in at],
        "summary": " / ".join(summaries),
        "openapi_extra": extra,
        "responses": {status: {"description": words} for status, words in REFUSALS.items()},
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components |= SCHEMAS["$defs"]
        app.openapi_schema = schema
    return app.openapi_schema
