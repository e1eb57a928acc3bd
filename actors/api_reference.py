"""Description of the endpoints: OpenAPI, and a page of it that runs no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from panoply.wire.feedback import FeedbackPayload
from panoply.wire.routes import ENDPOINTS

PAGE_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of the page."""
REFUSALS: dict[int | str, str] = {
    400: "The body is wrong; the message names the key, its value and what is allowed.",
    401: "The model asks for a key.",
    404: "No model has this name.",
    413: "Too much for one request.",
    415: "The body is compressed.",
    422: "A text cannot be scored.",
    424: "A text cannot be scored (TEI).",
    429: "The model is busy; `Retry-After` says for how long.",
    500: "An unexpected error; the log says where.",
    503: "The model cannot answer now.",
}

REFS, SCHEMAS = models_json_schema(
    [(payload, "validation") for payload in (*(e.payload for e in ENDPOINTS), FeedbackPayload)],
    ref_template="#/components/schemas/{model}",
)
"""Schemas of the dialects' payloads: FastAPI does not see them, since keys choose among them."""


def description(prefix: str, path: str) -> dict[str, Any]:
    """Returns a path's description for OpenAPI: the payloads of the dialects that share it."""
    at = [endpoint for endpoint in ENDPOINTS if path in endpoint.paths]
    return described(prefix, [e.payload for e in at], [e.dialect for e in at])


def described(
    prefix: str, payloads: Sequence[type[BaseModel]], tags: Sequence[str]
) -> dict[str, Any]:
    """Returns a description for OpenAPI.

    Args:
        prefix: of a path that names a model; empty for one that names none.
        payloads: what may be sent there.
        tags: groups of the description.
    """
    bodies = [REFS[payload, "validation"] for payload in payloads]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    extra: dict[str, Any] = {"requestBody": body}
    if prefix:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        extra["parameters"] = [name]
    summaries = [(payload.__doc__ or "").splitlines()[0] for payload in payloads]
    return {
        "tags": list(tags),
        "summary": " / ".join(summaries),
        "openapi_extra": extra,
        "responses": {status: {"description": words} for status, words in REFUSALS.items()},
    }


def openapi(app: FastAPI) -> dict[str, Any]:
    """Returns the description of all endpoints, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components |= SCHEMAS["$defs"]
        app.openapi_schema = schema
    return app.openapi_schema


def reference_page(app: FastAPI) -> str:
    """Returns the description of the endpoints as a page for people: HTML and one style sheet."""
    described = openapi(app)
    parts: list[str] = []
    for path, methods in described["paths"].items():
        if path.startswith("/models/"):
            continue
        for method, operation in methods.items():
            parts.append(_endpoint(path, method, operation))
    schemas: list[str] = []
    for name, schema in described["components"]["schemas"].items():
        text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        schemas.append(
            f"<details id='{escape(name)}'><summary>{escape(name)}</summary><pre>{text}</pre>"
            "</details>"
        )
    about = escape(described["info"]["description"]).replace("\n\n", "</p><p>")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Panoply: endpoints</title>"
        "<link rel='stylesheet' href='page/base.css'><main><h1>Endpoints</h1>"
        f"<p>{about}</p><p><a href='openapi.json'>openapi.json</a></p>"
        f"{''.join(parts)}<h2>Payloads</h2>{''.join(schemas)}</main></html>"
    )


def _endpoint(path: str, method: str, operation: dict[str, Any]) -> str:
    """Returns one endpoint of the page, with links to its payloads."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = body.get("schema", {})
    links: list[str] = []
    for reference in schema.get("anyOf", [schema] if schema else []):
        name = escape(reference["$ref"].rpartition("/")[2])
        links.append(f"<a href='#{name}'>{name}</a>")
    summary = escape(operation.get("summary", ""))
    return (
        f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{summary}</p>"
        f"<p>{', '.join(links)}</p>"
    )
