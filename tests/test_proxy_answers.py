"""Answers that Ray Serve's proxy gives by itself, in the shape of ours."""

import asyncio

import httpx2
import pytest

from actors.proxy_answers import UNSETTLED_SECONDS, ProxyAnswers


def asked(app, seconds=0.0):
    """The answer to a request, a while after the proxy's start."""
    now = 0.0
    answers = ProxyAnswers(app, lambda: now)
    now = seconds

    async def ask():
        transport = httpx2.ASGITransport(app=answers)
        async with httpx2.AsyncClient(transport=transport, base_url="http://h") as client:
            return await client.get("/v1/rewards")

    return asyncio.run(ask())


def answering(status, *bodies):
    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, body in enumerate(bodies, start=1):
            more = number < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


async def silent(scope, receive, send):
    """Gives up, as Ray Serve does where the replica of a request has died."""


def test_a_path_that_a_new_proxy_does_not_know_yet_is_asked_for_again():
    unknown = answering(404, b"Path '/v1/rewards' not found. Ping http://.../-/routes")
    early = asked(unknown)
    assert (early.status_code, early.headers["retry-after"]) == (503, "1")
    assert early.json()["error"]["message"] == "this server is starting: ask again"
    late = asked(unknown, UNSETTLED_SECONDS + 1)
    assert (late.status_code, late.text[:6]) == (404, "Path '")


def test_a_request_whose_replica_died_gets_a_reason_and_can_be_asked_again():
    answer = asked(silent)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "ask again" in answer.json()["error"]["message"]


@pytest.mark.parametrize("status", [200, 404, 422, 500])
def test_what_an_application_answers_passes_as_it_is(status):
    answer = asked(answering(status, b"no model ", b"is called so"))
    assert (answer.status_code, answer.text) == (status, "no model is called so")
    assert answer.headers["content-type"] == "text/plain"


def test_an_error_of_an_application_is_not_hidden():
    async def broken(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asked(broken)
