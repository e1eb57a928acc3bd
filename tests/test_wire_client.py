"""The client against a real server on this machine, and what TRL and verl make of its answers."""

import asyncio
import inspect
import math
import time

import pytest

from panoply.wire.attempts import RewardServerError
from panoply.wire.client import AsyncClient, Client
from panoply.wire.request import Chat, ScoreRequest
from tests.wire_server import serving

USER = {"role": "user", "content": "Why?"}
ASK = ScoreRequest(items=(Chat((USER,), ("good #1.5", "bad #-2")),), models=("m",))


def scores(answer):
    return [score.score for item in answer.models[0].items for score in item]


def ask_sync(url, request=ASK, **settings):
    with Client(url, **settings) as client:
        return client.score(request)


def ask_async(url, request=ASK, **settings):
    async def ask():
        async with AsyncClient(url, **settings) as client:
            return await client.score(request)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async])


@both
def test_scores_come_back_as_asked(ask):
    with serving() as (url, seen):
        answer = ask(url, api_key="secret")
    assert scores(answer) == [1.5, -2]
    ((path, headers, payload, _),) = seen
    assert path == "/v1/rewards"
    assert headers["authorization"] == "Bearer secret"
    assert payload["models"] == ["m"]
    assert 0 < payload["timeout"] <= 120


@both
def test_a_full_server_is_asked_again_when_it_said(ask):
    with serving((429, {"Retry-After": "1"}, {"error": "full"})) as (url, seen):
        assert scores(ask(url, timeout=10)) == [1.5, -2]
    assert 1 <= seen[1][3] - seen[0][3] < 3
    assert seen[1][2]["timeout"] < seen[0][2]["timeout"] - 0.9


@both
def test_a_lost_replica_a_lost_gateway_and_a_broken_connection_cost_an_attempt(ask):
    # Ray Serve's proxy says 500 for a gateway that died with the request in hand.
    with serving((503, {}, {"error": "lost"}), (500, {}, b"Internal"), "drop") as (url, seen):
        assert scores(ask(url, timeout=20)) == [1.5, -2]
    assert len(seen) == 4


@both
def test_the_client_gives_up_before_its_time_is_over_and_says_why(ask):
    with serving((429, {"Retry-After": "60"}, {"error": "full"})) as (url, seen):
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 2 s; .* HTTP 429.*full.*60\.0 s later"):
            ask(url, timeout=2)
        assert time.monotonic() - start < 1.5
    assert len(seen) == 1


@both
def test_a_server_that_is_not_there_is_a_timeout_with_the_reason(ask):
    with serving() as (url, _):
        pass
    with pytest.raises(TimeoutError, match="ConnectError"):
        ask(url, timeout=0.6)


@both
@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_is_final_and_carries_the_server_s_words(ask, status):
    refusal, told = (status, {}, {"error": "no model 'm'"}), rf"HTTP {status}: .*no model 'm'"
    with serving(refusal) as (url, seen), pytest.raises(RewardServerError, match=told):
        ask(url)
    assert len(seen) == 1


@both
@pytest.mark.parametrize("body", [b"<html>", {}, {"id": "1", "created": 1, "results": []}])
def test_an_answer_that_is_none_is_no_score(ask, body):
    with (
        serving((200, {}, body)) as (url, _),
        pytest.raises(RewardServerError, match="cannot read"),
    ):
        ask(url)


def test_pairs_are_compared_by_both_clients():
    pairs = [((USER,), "good #1", "bad #-1"), ((USER,), "lost #lost", "bad #-1")]

    async def ask(url):
        async with AsyncClient(url) as client:
            return await client.compare("m", pairs)

    with serving() as (url, seen):
        with Client(url) as client:
            found = client.compare("m", pairs)
        assert asyncio.run(ask(url)) == found
    assert found[0].score == pytest.approx(1 / (1 + math.exp(-2)))
    assert (found[1].score, found[1].error, found[1].transient) == (
        None,
        "the replica was lost",
        True,
    )
    path, _, payload, _ = seen[0]
    assert path == "/v1/compare"
    assert payload["pairs"][0] == {"prompt": [USER], "a": "good #1", "b": "bad #-1"}
    assert payload["model"] == "m"


def test_the_request_s_own_timeout_holds():
    short = ScoreRequest(items=ASK.items, timeout=0.4)
    full = (503, {"Retry-After": "1"}, {})
    with serving(full) as (url, _), pytest.raises(TimeoutError, match=r"within 0\.4 s"):
        ask_sync(url, short)


def test_wrong_settings_are_told_before_anything_is_sent():
    with pytest.raises(ValueError, match="must start with http"):
        Client("localhost:8000")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Client("http://localhost", timeout=0)


def test_an_async_client_outlives_its_event_loop():
    with serving() as (url, _):
        client = AsyncClient(url)
        for _ in range(2):
            assert scores(asyncio.run(client.score(ASK))) == [1.5, -2]


# TRL


def as_trl(func, prompts, completions, **columns):
    """What GRPOTrainer does: keywords, columns as lists, None becomes NaN."""
    columns |= {"completion_ids": [[1]] * len(prompts), "trainer_state": None, "log_extra": None}
    found = func(prompts=prompts, completions=completions, **columns)
    found = asyncio.run(found) if inspect.iscoroutinefunction(func) else found
    assert len(found) == len(prompts)
    return found


clients = pytest.mark.parametrize("kind", [Client, AsyncClient])


@clients
def test_trl_s_plain_prompts_are_text_through_a_template(kind):
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        assert func.__name__ == "armorm"
        assert as_trl(func, ["p", "q", "p"], ["a #1", "b #2", "c #3"]) == [1, 2, 3]
    assert seen[0][2]["items"] == [
        {"rendered": "p", "responses": ["a #1", "c #3"]},
        {"rendered": "q", "responses": ["b #2"]},
    ]


@clients
def test_trl_s_conversations_meet_by_prompt_and_come_back_in_place(kind):
    def reply(text):
        return [{"role": "assistant", "content": text, "tool_calls": None}]

    other = [{"role": "system", "content": "Be brief."}, USER]
    prompts = [[USER], other, [USER], other]
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        found = as_trl(func, prompts, [reply(f"x #{i}") for i in range(4)])
    assert found == [0, 1, 2, 3]
    assert seen[0][2]["items"] == [
        {"prompt": [USER], "responses": ["x #0", "x #2"]},
        {"prompt": other, "responses": ["x #1", "x #3"]},
    ]
    assert seen[0][2]["models"] == ["armorm"]


@clients
def test_a_missing_score_is_none_for_trl_and_its_share_is_logged(kind):
    call = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    tool = [{"role": "assistant", "content": "x"}, {"role": "tool", "content": "5"}]
    completions = [[{"role": "assistant", "content": f"x #{w}"}] for w in ("nan", "0", "lost")]
    logged = {}
    with serving() as (url, _):
        func = kind(url).trl_reward_func("armorm")
        found = as_trl(
            func, [[USER]] * 6, [*completions, call, tool, []], log_metric=logged.__setitem__
        )
    assert found == [None, 0, None, None, None, None]
    assert logged == {
        "rewards/armorm/missing": pytest.approx(5 / 6),
        "rewards/armorm/truncated": 0,
    }


@clients
def test_labels_reach_function_arms_and_keep_their_samples_apart(kind):
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("exact", label_column="answer")
        found = as_trl(func, ["p", "p", "p"], ["a #1", "b #2", "c #3"], answer=["4", "5", "4"])
        assert found == [1, 2, 3]
        with pytest.raises(KeyError, match="no column 'answer'"):
            as_trl(func, ["p"], ["a #1"])
    assert seen[0][2]["items"] == [
        {"rendered": "p", "responses": ["a #1", "c #3"], "label": "4"},
        {"rendered": "p", "responses": ["b #2"], "label": "5"},
    ]


@clients
def test_a_server_without_the_model_stops_trl_and_does_not_feed_it_zeros(kind):
    missing = (404, {}, {"error": "no model 'armorm'"})
    with serving(missing) as (url, _), pytest.raises(RewardServerError, match="no model"):
        as_trl(kind(url).trl_reward_func("armorm"), ["p"], ["a #1"])


# verl


def as_verl(func, solution, extra_info):
    """What verl's reward loop does: keywords, with a router's address beside them."""
    found = func(
        data_source="data",
        solution_str=solution,
        ground_truth="gold",
        extra_info=extra_info,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )
    return asyncio.run(found) if inspect.iscoroutinefunction(func) else found


@clients
def test_verl_gets_a_score_with_its_objectives(kind):
    with serving() as (url, seen):
        func = kind(url).verl_compute_score("armorm")
        assert inspect.iscoroutinefunction(func) == (kind is AsyncClient)
        found = as_verl(func, "So #0.5", {"prompt": [USER]})
        assert found == {"score": 0.5, "helpfulness": 0.25, "brevity": -0.5, "truncated": 0}
        assert as_verl(func, "So #0", {"prompt": "Why?"})["score"] == 0
    item = {"prompt": [USER], "responses": ["So #0.5"], "label": "gold"}
    assert seen[0][2]["items"] == [item]
    assert seen[1][2]["items"] == [item | {"responses": ["So #0"]}]


@clients
def test_verl_s_missing_prompt_and_missing_score_are_errors(kind):
    with serving() as (url, _):
        func = kind(url).verl_compute_score("armorm", prompt_key="question")
        with pytest.raises(KeyError, match=r"no 'question'.*there are \['prompt'\]"):
            as_verl(func, "So #1", {"prompt": [USER]})
        with pytest.raises(RuntimeError, match=r"gave no score: .*not finite"):
            as_verl(func, "So #nan", {"question": "Why?"})
