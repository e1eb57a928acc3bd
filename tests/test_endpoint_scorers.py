"""Arms that are endpoints of other servers, against a real server on this machine."""

import asyncio
import time

import pytest

from panoply.scorers.endpoint import EndpointScorer
from panoply.wire.outbound import DIALECTS
from panoply.wire.request import Chat, RenderedText, Tokens
from tests.builders.wire_server import serving

USER = {"role": "user", "content": "Why?"}
CHAT = Chat((USER,), ("good #1.5", "bad #-2", "so #0"))
TEXT = RenderedText(
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", ("a #7<|im_end|>",)
)


def ask(url, dialect, *items, **settings):
    async def scores():
        scorer = EndpointScorer(url, dialect, **{"template": "chatml", **settings})
        try:
            return await scorer.score(items)
        finally:
            await scorer.close()

    return asyncio.run(scores())


def numbers(scores):
    return [[score.score for score in item] for item in scores]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_scores_conversations_and_text_over_the_wire(dialect):
    with serving() as (url, seen):
        results = ask(url, dialect, CHAT, Chat((USER,), ()), TEXT, model="m")
    assert numbers(results) == [[1.5, -2, 0], [], [7]]
    assert {path for path, *_ in seen} == {DIALECTS[dialect].path}


def test_a_path_of_the_url_is_kept_and_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("RM_KEY", "secret")
    with serving() as (url, seen):
        results = ask(f"{url}/v1/classify", "vllm", CHAT, model="m", api_key_env="RM_KEY")
    assert numbers(results) == [[1.5, -2, 0]]
    path, headers, payload, _ = seen[0]
    assert path == "/v1/classify"
    assert headers["authorization"] == "Bearer secret"
    assert payload["model"] == "m"


def test_no_more_requests_than_allowed_are_on_their_way_and_none_is_lost():
    with serving() as (url, seen):
        items = [Chat((USER,), (f"x #{i}",)) for i in range(40)]
        results = ask(url, "vllm", *items, max_concurrent=2)
    assert numbers(results) == [[i] for i in range(40)]
    assert len(seen) == 40


def test_a_full_or_lost_server_is_asked_again():
    script = [(429, {"Retry-After": "0"}, {}), (503, {}, {}), (502, {}, b"<html>"), "drop"]
    with serving(*script) as (url, seen):
        assert numbers(ask(url, "sglang", CHAT, timeout=30)) == [[1.5, -2, 0]]
    assert len(seen) == 5


def test_a_server_that_is_not_there_is_a_transient_error_of_each_response_and_never_0():
    with serving() as (url, _):
        pass
    start = time.monotonic()
    ((*scores,), _) = ask(url, "openrlhf", CHAT, TEXT, timeout=0.6)
    assert time.monotonic() - start < 5
    assert len(scores) == 3
    assert all(score.score is None and score.transient for score in scores)
    assert all("gave no answer within 0." in score.error for score in scores)


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_at_fault_is_transient(status):
    with serving((status, {}, {"error": "no model 'm'"})) as (url, seen):
        ((first, *_),) = ask(url, "sglang", CHAT)
    assert first.transient
    assert f"answered HTTP {status}" in first.error
    assert len(seen) == 1


def test_an_answer_that_cannot_be_read_is_an_error_of_each_response():
    for body in (b"<html>", {"data": []}, b"[" * 100_000):
        with serving((200, {}, body)) as (url, _):
            ((*scores,),) = ask(url, "sglang", CHAT)
        assert all("no answer of its protocol" in score.error for score in scores)
        assert all(score.transient for score in scores)


@pytest.mark.parametrize("dialect", ["sglang", "openrlhf", "tei", "vllm", "panoply"])
def test_one_response_at_fault_costs_no_other_its_score(dialect):
    broken = Chat((USER,), ("good #1.5", "bad #nan", "so #0"))
    with serving() as (url, _):
        ((good, bad, zero),) = ask(url, dialect, broken)
    assert (good.score, bad.score, zero.score) == (1.5, None, 0)
    assert bad.error.startswith("the server behind this model")
    assert not bad.transient


def test_a_response_with_a_marker_of_the_template_costs_no_other_its_score():
    with serving() as (url, _):
        ((good, bad),) = ask(url, "sglang", Chat((USER,), ("good #1", "<|im_start|> #2")))
    assert good.score == 1
    assert "holds '<|im_start|>'" in bad.error


def test_what_cannot_be_sent_is_an_error_of_its_own_item():
    with serving() as (url, _):
        results = ask(url, "openrlhf", CHAT, Tokens(((1,), (2,))), template="")
        assert [score.error for score in results[0]] == [results[0][0].error] * 3
        assert "unless `template`" in results[0][0].error
        assert "no token ids" in results[1][1].error
        half, good = ask(url, "slime", Chat((USER,), ("\ud800 #1",)), CHAT)
    assert "cannot be sent" in half[0].error
    assert numbers([good]) == [[1.5, -2, 0]]


def test_wrong_settings_are_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("RM_KEY", raising=False)
    for settings, message in (
        ({"url": "localhost:8000"}, "must be http://HOST or https://HOST, got 'localhost:8000'"),
        ({"dialect": "triton"}, r"must be one of \['panoply', .*got 'triton'"),
        ({"template": "x"}, r"must be empty or of \['chatml'.*got 'x'"),
        ({"timeout": 0}, "`timeout` must be positive"),
        ({"max_concurrent": 0}, "at least 1, got 0"),
        ({"api_key_env": "RM_KEY"}, "'RM_KEY', which is not set on this node"),
    ):
        with pytest.raises(ValueError, match=message):
            EndpointScorer(**{"url": "http://h", "dialect": "vllm", **settings})
