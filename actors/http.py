"""The gateway over HTTP: every dialect at its path, the page, the models, health and metrics."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from ray.util.metrics import Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

import panoply.report
from actors.api_reference import PAGE_POLICY, description, openapi, reference_page
from actors.feedback import add_feedback
from actors.gateway import Gateway
from actors.hardened import Hardened, refusal, refusal_headers
from actors.intake import Call, Intake
from actors.internal_error import internal_error
from actors.relayed_metrics import RelayedMetrics
from panoply.serve.access import Caller
from panoply.serve.supervised import SupervisedLoop
from panoply.wire import tei, vllm
from panoply.wire.limits import RequestLimits, work_of
from panoply.wire.request import (
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    decision_ids,
    num_truncated,
)
from panoply.wire.routes import ENDPOINTS

ScoreRoute: TypeAlias = Callable[[Request], Awaitable[Response]]
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
DECISIONS = "X-Panoply-Decisions"
"""Header with the id of a bandit's decision on each item, as `NAME=ID`, or `NAME=-` for none."""
MOST_DECISIONS = 64
"""Ids that the header holds; `/v1/rewards` has any number in its body."""
ABOUT = """Scores by several reward models, in the words of the client's own protocol.

Every path of a protocol also stands behind `/models/NAME`, which names the model."""


def make_app(
    gateway: Gateway,
    intake: Intake,
    agents: Callable[[], Awaitable[Sequence[str]]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    loops: Sequence[SupervisedLoop] = (),
    run: str = "",
) -> FastAPI:
    """Returns the HTTP application.

    Args:
        gateway: answers requests.
        intake: checks and reads them.
        agents: returns the URLs of the nodes' metrics.
        lifespan: context that is open while the application runs.
        loops: background work, without which the gateway is not well.
        run: id of this start of the server, shown at `/health`.
    """
    app = FastAPI(
        title="Panoply",
        description=ABOUT,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would name the scheme and host that a proxy speaks with, not the client's.
        redirect_slashes=False,
    )
    metrics, relayed = GatewayMetrics(), RelayedMetrics(agents)

    score = _scoring(gateway, intake, metrics)
    for path in PATHS:
        for prefix in ("", PREFIX):
            described = description(prefix, path)
            app.add_api_route(_route(prefix, path), score, methods=["POST"], **described)

    add_feedback(app, gateway, intake, metrics.answered, PREFIX)
    _add_models(app, gateway, intake.limits)
    _add_refusals(app)
    _add_health(app, gateway, loops, run)

    @app.get("/metrics", summary="Prometheus metrics of all nodes.")
    async def node_metrics() -> PlainTextResponse:
        for loop in loops:
            metrics.loop_age.set(loop.age, {"loop": loop.name})
        return PlainTextResponse(await relayed.text())

    _add_page(app)
    app.openapi = lambda: openapi(app)
    app.add_middleware(Hardened, hosts=intake.hosts)
    return app


def _scoring(gateway: Gateway, intake: Intake, metrics: GatewayMetrics) -> ScoreRoute:
    """Returns what answers a request of any dialect: with scores, or with why there are none."""

    async def score(request: Request) -> Response:
        path, name = _path(request), request.path_params.get("name")
        begun, call, headers = time.monotonic(), Call(path), dict[str, str]()
        try:
            caller = intake.caller(request, name)
            await intake.read(request, caller, call, name)
            score_request = replace(gateway.named(call.request, name), caller=caller.name)
            intake.keys.check(caller, score_request.models)
            intake.rates.charge(caller, work_of(score_request))
            answer = await gateway.score(score_request, spent=time.monotonic() - begun)
            status, body = 200, _json(call.typed.render(answer, score_request))
            headers[VERSIONS] = ", ".join(f"{quote(m.model)}={m.version}" for m in answer.models)
            if cut := num_truncated(answer):
                headers[TRUNCATED] = str(cut)
            headers |= _decisions(gateway, answer)
            metrics.scored(score_request, caller, time.monotonic() - begun)
        except Exception as error:
            refused = error if isinstance(error, RequestError) else internal_error(path, error)
            status, refusal = call.endpoint.refuse(refused)
            body = _json(refusal)
            headers |= refusal_headers(refused)
        metrics.answered(path, status, time.monotonic() - begun)
        return Response(body, status, headers, "application/json")

    return score


def _add_health(app: FastAPI, gateway: Gateway, loops: Sequence[SupervisedLoop], run: str) -> None:
    """Adds the routes that say whether the gateway lives, and whether a model can answer."""

    def states() -> dict[str, Any]:
        return {
            "models": {name: model.state for name, model in gateway.models.items()},
            "circuits": {name: model.circuit for name, model in gateway.models.items()},
            "loops": {loop.name: round(loop.age, 1) for loop in loops},
            "run": run,
        }

    @app.get("/health", summary="200 while the gateway works, whatever its models do.")
    def health() -> JSONResponse:
        stale = [loop.name for loop in loops if not loop.is_well]
        status = f"no success for long: {', '.join(stale)}" if stale else "ok"
        return JSONResponse({"status": status, **states()}, 503 if stale else 200)

    @app.get("/ready", summary="200 while a model can answer.")
    def ready() -> JSONResponse:
        is_ready = any(model.can_answer for model in gateway.models.values())
        status = "ok" if is_ready else "no model can answer"
        return JSONResponse({"status": status, **states()}, 200 if is_ready else 503)


def _add_page(app: FastAPI) -> None:
    """Adds the page for people, whose style is in part that of a run's page."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/page/base.css", include_in_schema=False)
    def base_style() -> FileResponse:
        return FileResponse(BASE_STYLE)

    @app.get("/docs", include_in_schema=False)
    def reference() -> HTMLResponse:
        return HTMLResponse(reference_page(app), headers={"Content-Security-Policy": PAGE_POLICY})

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
        return refusal(error)

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
        self.by_key = Counter("panoply_scored_total", "Responses scored.", ("key", "model"))
        self.loop_age = Gauge("panoply_loop_age_seconds", "Since the latest success.", ("loop",))

    def scored(self, request: ScoreRequest, caller: Caller, seconds: float) -> None:
        """Counts a request that was scored."""
        for model in request.models:
            self.of_model.observe(seconds, {"model": model})
            if request.num_responses:  # a counter takes no 0
                self.by_key.inc(request.num_responses, {"key": caller.name, "model": model})

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request, whatever its status."""
        self.count.inc(1, {"path": path, "status": str(status)})
        self.seconds.observe(seconds, {"path": path})


def _decisions(gateway: Gateway, answer: ScoreAnswer) -> dict[str, str]:
    """Returns the header with the ids of bandits' decisions, in the order of the items.

    It is left out where there are too many for a header, which proxies cut or refuse.
    """
    entries: list[str] = []
    for model in answer.models:
        if gateway.models[model.model].is_bandit:
            name = quote(model.model)
            entries += [f"{name}={decision or '-'}" for decision in decision_ids(model)]
    return {DECISIONS: ", ".join(entries)} if 0 < len(entries) <= MOST_DECISIONS else {}


def _path(request: Request) -> str:
    """Returns the dialect's path: the route's, without the prefix that names a model."""
    return request.scope["route"].path.removeprefix(PREFIX) or "/"


def _route(prefix: str, path: str) -> str:
    """Returns the route of a dialect's path; a bare `/` behind a prefix is the prefix itself."""
    return prefix if prefix and path == "/" else prefix + path


def _json(answer: Any) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, default=dict).encode()


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
