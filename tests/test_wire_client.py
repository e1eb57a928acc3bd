"""The client against a real server on this machine, and what TRL and verl make of its answers."""

import asyncio
import copy
import functools
import inspect
import logging
import math
import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
import ray.cloudpickle

from panoply.wire.client import AsyncClient, Client
from panoply.wire.request import Chat, ScoreRequest
from panoply.wire.retry import RewardServerError
from tests.builders.wire_server import serving

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
        with pytest.raises(
            TimeoutError, match=r"within 30 s; .* HTTP 429.*full.*[67]\d\.\d s later"
        ):
            ask(url, timeout=30)
        assert time.monotonic() - start < 25
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
    refusal, message = (status, {}, {"error": "no model 'm'"}), rf"HTTP {status}: .*no model 'm'"
    with serving(refusal) as (url, seen), pytest.raises(RewardServerError, match=message):
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
            result = client.compare("m", pairs)
        assert asyncio.run(ask(url)) == result
    assert result[0].score == pytest.approx(1 / (1 + math.exp(-2)))
    assert (result[1].score, result[1].error, result[1].transient) == (
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


def test_event_loops_in_threads_use_one_async_client_at_once():
    with serving() as (url, seen):
        client = AsyncClient(url, api_key="secret")
        gate = threading.Barrier(4)

        def ask(i):
            async def several():
                gate.wait(10)
                asks = [asking(i * 10 + j) for j in range(5)]
                return await asyncio.gather(*map(client.score, asks))

            return [scores(answer) for answer in asyncio.run(several())]

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == [
                [[i * 10 + j] for j in range(5)] for i in range(4)
            ]
        assert scores(asyncio.run(client.score(ASK))) == [1.5, -2]
        assert len(client._http) == 1  # of the loops that have ended nothing is kept
    assert all(headers["authorization"] == "Bearer secret" for _, headers, _, _ in seen)


def asking(number):
    return ScoreRequest(items=(Chat((USER,), (f"x #{number}",)),), models=("m",))


def test_an_async_client_that_was_closed_connects_anew():
    async def ask(client):
        async with client:
            await client.score(ASK)
        return await client.score(ASK)

    with serving() as (url, _):
        assert scores(asyncio.run(ask(AsyncClient(url)))) == [1.5, -2]
        client = Client(url)
        with client:
            client.score(ASK)
        assert scores(client.score(ASK)) == [1.5, -2]


# Other processes


def rewarded(function):
    """What a trainer gets of a reward function, wherever it runs."""
    if "prompt_key" in vars(function):
        return as_verl(function, "So #0.5", {"prompt": [USER]})["score"]
    return as_trl(function, ["p", "p"], ["a #1", "b #2"])


def functions_of(url):
    for kind in (Client, AsyncClient):
        client = kind(url, api_key="secret")
        yield client.trl_reward_func("armorm", label_column=None)
        yield client.verl_compute_score("armorm")


def connected(url):
    """Functions whose clients have connections, which cannot go anywhere."""
    functions = list(functions_of(url))
    assert [rewarded(function) for function in functions] == [[1, 2], 0.5] * 2
    return functions


def test_copies_of_functions_and_clients_connect_by_themselves():
    with serving() as (url, seen):
        for function in connected(url):
            for copied in (
                pickle.loads(pickle.dumps(function)),
                cloudpickle.loads(cloudpickle.dumps(function)),
                ray.cloudpickle.loads(ray.cloudpickle.dumps(function)),
                copy.deepcopy(function),
            ):
                assert rewarded(copied) == rewarded(function)
                assert copied.__name__ == "armorm"
                assert copied.client._http is not function.client._http
                assert inspect.iscoroutinefunction(copied) == inspect.iscoroutinefunction(function)
            client = pickle.loads(pickle.dumps(function.client))
            assert (client.url, client.timeout) == (url, 120)
    assert all(headers["authorization"] == "Bearer secret" for _, headers, _, _ in seen)


class Shifted(Client):
    """A user's own client, with a setting of its own."""

    def __init__(self, url, shift):
        super().__init__(url)
        self.shift = shift


def test_a_copy_of_a_user_s_own_client_has_all_of_its_settings():
    copied = pickle.loads(pickle.dumps(Shifted("http://a", shift=2)))
    assert (copied.url, copied.shift) == ("http://a", 2)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_functions_work_in_pools_of_processes(start):
    with serving() as (url, _):
        functions = connected(url)
        with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
            rewards = list(pool.map(rewarded, functions * 2, timeout=60))
        assert rewards == [[1, 2], 0.5] * 4


def test_a_fork_leaves_the_connections_of_its_parent_alone():
    context = multiprocessing.get_context("fork")
    with serving() as (url, _):
        client = Client(url)
        assert scores(client.score(ASK)) == [1.5, -2]
        queue, parents = context.Queue(), client._connections()

        def ask():  # the fork has the very same object
            answers = [scores(client.score(asking(i))) for i in range(100, 120)]
            queue.put((answers, client._connections() is parents))

        child = context.Process(target=ask)
        child.start()
        assert [scores(client.score(asking(i))) for i in range(20)] == [[i] for i in range(20)]
        assert queue.get(timeout=60) == ([[i] for i in range(100, 120)], False)
        child.join(10)
        assert client._connections() is parents


def test_trainers_take_the_async_ones_for_coroutine_functions_and_the_others_not():
    for function in functions_of("http://h"):
        is_async = isinstance(function.client, AsyncClient)
        for check in (inspect.iscoroutinefunction, asyncio.iscoroutinefunction):
            assert check(function) == is_async
            assert check(functools.partial(function)) == is_async
            assert check(function.__call__) == is_async


def test_frameworks_that_read_signatures_see_the_call_s_own():
    for function in functions_of("http://a"):
        expected = inspect.signature(function.__call__)
        for there in (function, pickle.loads(pickle.dumps(function)), copy.deepcopy(function)):
            assert inspect.signature(there) == expected
        assert "self" not in expected.parameters


def test_trl_names_them_by_their_model_and_awaits_the_async_ones():
    utils = pytest.importorskip("trl.trainer.utils")
    for function in functions_of("http://h"):
        is_async = isinstance(function.client, AsyncClient)
        assert utils.get_callable_name(function) == "armorm"
        assert utils.is_async_callable(function) == is_async


def test_nothing_that_is_printed_holds_the_key():
    for function in functions_of("http://h:1"):
        for shown in (function, function.client, vars(function), vars(function.client)):
            assert "secret" not in f"{shown!r}{shown!s}"
        assert "http://h:1" in repr(function)


# TRL


def as_trl(func, prompts, completions, **columns):
    """What GRPOTrainer does: keywords, columns as lists, None becomes NaN."""
    columns |= {"completion_ids": [[1]] * len(prompts), "trainer_state": None, "log_extra": None}
    result = func(prompts=prompts, completions=completions, **columns)
    result = asyncio.run(result) if inspect.iscoroutinefunction(func) else result
    assert len(result) == len(prompts)
    return result


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
        result = as_trl(func, prompts, [reply(f"x #{i}") for i in range(4)])
    assert result == [0, 1, 2, 3]
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
        result = as_trl(
            func, [[USER]] * 6, [*completions, call, tool, []], log_metric=logged.__setitem__
        )
    assert result == [None, 0, None, None, None, None]
    assert logged == {
        "rewards/armorm/missing": pytest.approx(5 / 6),
        "rewards/armorm/truncated": 0,
    }


HALF = "\ud83d"
UNREADABLE = [
    [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
    [{"role": "assistant", "content": None}],
    [{"role": "assistant", "content": [{"type": "image", "image": object()}]}],
    [{"role": "narrator", "content": "x #1"}],
    [{"role": "assistant", "content": f"{HALF} #1"}],
    [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
        {"role": "tool", "name": "f", "content": "5"},
        {"role": "assistant", "content": "x #1"},
    ],
    ["no turn"],
    None,
    float("nan"),
    3,
    [{"role": "assistant"}],
    [{"role": "assistant", "content": "x #1", "audio": np.ones(3)}],
    [],
]


@clients
def test_what_cannot_be_read_is_its_own_none_and_the_others_are_scored(kind, caplog):
    good = [{"role": "assistant", "content": "x #1.5"}]
    completions = [good, *UNREADABLE, good]
    logged = {}
    with serving() as (url, seen), caplog.at_level(logging.WARNING, "panoply"):
        func = kind(url).trl_reward_func("armorm")
        prompts = [[USER]] * len(completions)
        rewards = as_trl(func, prompts, completions, log_metric=logged.__setitem__)
    assert rewards == [1.5, *[None] * len(UNREADABLE), 1.5]
    assert logged["rewards/armorm/missing"] == pytest.approx(len(UNREADABLE) / len(rewards))
    assert seen[0][2]["items"] == [{"prompt": [USER], "responses": ["x #1.5"] * 2}]
    (record,) = caplog.records
    assert f"'armorm': {len(UNREADABLE)} of {len(rewards)} completions" in record.getMessage()
    assert "tool_calls" in record.getMessage()


@clients
def test_a_prompt_that_cannot_be_read_costs_only_its_own_completions(kind):
    image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    reply = [{"role": "assistant", "content": "x #2"}]
    with serving() as (url, _):
        func = kind(url).trl_reward_func("armorm")
        assert as_trl(func, [image, [USER], [], image], [reply] * 4) == [None, 2, None, None]
        assert as_trl(func, [image], [reply]) == [None]


@clients
def test_turns_may_stand_in_arrays(kind):
    turns = [USER, {"role": "assistant", "content": "So."}, USER]
    reply = {"role": "assistant", "content": "x #2"}
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        assert as_trl(func, [np.array(turns)] * 2, [np.array([reply]), "x #3"]) == [2, 3]
    assert seen[0][2]["items"] == [{"prompt": turns, "responses": ["x #2", "x #3"]}]


@clients
def test_thoughts_are_not_the_reply_which_is_scored_on_its_content(kind):
    replies = [
        [{"role": "assistant", key: "Hm. #9", "content": f"x #{i}", "tool_calls": []}]
        for i, key in enumerate(("reasoning_content", "thinking", "reasoning"))
    ]
    earlier = [USER, {"role": "assistant", "thinking": "Hm.", "content": "So."}, USER]
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        assert as_trl(func, [[USER]] * 3, replies) == [0, 1, 2]
        assert as_trl(func, [earlier], replies[:1]) == [0]
    assert seen[0][2]["items"] == [{"prompt": [USER], "responses": ["x #0", "x #1", "x #2"]}]
    assert seen[1][2]["items"][0]["prompt"][1] == {"role": "assistant", "content": "So."}


@clients
def test_a_tool_s_turn_with_a_name_goes_to_the_model_with_its_name(kind):
    prompt = [USER | {"name": None}, {"role": "assistant", "content": "<call>"}]
    tool = {"role": "tool", "name": "add", "content": [{"type": "text", "text": "5"}]}
    reply = {"role": "assistant", "content": "It is 5. #1"}
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        assert as_trl(func, [prompt], [[tool, reply]]) == [1]
    assert seen[0][2]["items"][0]["prompt"] == [
        USER,
        {"role": "assistant", "content": "<call>"},
        {"role": "tool", "content": "5", "name": "add"},
    ]


@clients
def test_the_share_of_cut_texts_is_logged_for_trl(kind):
    logged = {}
    with serving() as (url, _):
        func = kind(url).trl_reward_func("armorm")
        as_trl(func, ["p"] * 4, ["[cut] #1", "b #2", "c #3", "d #4"], log_metric=logged.__setitem__)
    assert logged["rewards/armorm/truncated"] == 0.25


@clients
def test_labels_reach_function_arms_as_data_sets_hold_them(kind):
    labels = [np.array([4, 5]), np.int64(4), {"gold": (np.float32(0.5), None)}, np.nan]
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("exact", label_column="answer")
        completions = [f"x #{i}" for i in range(5)]
        rewards = as_trl(func, ["p"] * 5, completions, answer=[*labels, np.array([4, 5])])
        assert rewards == [0, 1, 2, 3, 4]
        with pytest.raises(TypeError, match=r"column 'answer' holds a builtins\.bytes"):
            as_trl(func, ["p"], ["a #1"], answer=[b"4"])
    assert [item.get("label") for item in seen[0][2]["items"]] == [
        [4, 5],
        4,
        {"gold": [0.5, None]},
        None,
    ]


@clients
def test_labels_reach_function_arms_and_keep_their_samples_apart(kind):
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("exact", label_column="answer")
        result = as_trl(func, ["p", "p", "p"], ["a #1", "b #2", "c #3"], answer=["4", "5", "4"])
        assert result == [1, 2, 3]
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


# ms-swift


def as_swift(func, conversations, **columns):
    """What ms-swift's compute_rewards_per_func does: completions first, all else by name."""
    completions = [turns[-1]["content"] for turns in conversations]
    columns |= {"messages": conversations, "trainer_state": None, "request_id": ["1"]}
    is_async = asyncio.iscoroutinefunction(func) or asyncio.iscoroutinefunction(func.__call__)
    rewards = func(completions, **columns)
    return asyncio.run(rewards) if is_async else rewards


@clients
def test_ms_swift_s_call_is_scored_on_its_messages(kind):
    def replied(text):
        return [USER, {"role": "assistant", "content": text}]

    asked_twice = [*replied("So."), USER, {"role": "assistant", "content": "x #3"}]
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm", label_column="solution")
        conversations = [replied("x #1"), asked_twice, replied("x #2")]
        assert as_swift(func, conversations, solution=["4", "5", "4"]) == [1, 3, 2]
        assert as_swift(func, [replied("x #1")], solution=["4"]) == [1]
    assert seen[0][2]["items"] == [
        {"prompt": [USER], "responses": ["x #1", "x #2"], "label": "4"},
        {"prompt": asked_twice[:3], "responses": ["x #3"], "label": "5"},
    ]


@clients
def test_a_row_of_ms_swift_without_messages_goes_alone_beside_the_others(kind):
    rows = {"messages": [[], None, [USER]]}
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        rewards = func(["x #1", "x #2", "x #3"], **rows)
        assert (asyncio.run(rewards) if inspect.iscoroutine(rewards) else rewards) == [1, 2, 3]
    assert seen[0][2]["items"] == [
        {"responses": ["x #1", "x #2"]},
        {"prompt": [USER], "responses": ["x #3"]},
    ]


@clients
def test_completions_without_prompts_go_alone_and_a_column_of_prompts_is_no_conversation(kind):
    with serving() as (url, seen):
        func = kind(url).trl_reward_func("armorm")
        for columns in ({}, {"messages": [[USER]]}):
            rewards = func(["x #1"], **columns)
            assert (asyncio.run(rewards) if inspect.iscoroutine(rewards) else rewards) == [1]
    assert seen[0][2]["items"] == [{"responses": ["x #1"]}]
    assert seen[1][2]["items"] == [{"prompt": [USER], "responses": ["x #1"]}]


# verl


def as_verl(func, solution, extra_info, ground_truth="gold"):
    """What verl's reward loop does: keywords, with a router's address beside them."""
    result = func(
        data_source="data",
        solution_str=solution,
        ground_truth=ground_truth,
        extra_info=extra_info,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )
    return asyncio.run(result) if inspect.iscoroutinefunction(func) else result


@clients
def test_verl_gets_a_score_with_its_objectives(kind):
    with serving() as (url, seen):
        func = kind(url).verl_compute_score("armorm")
        assert inspect.iscoroutinefunction(func) == (kind is AsyncClient)
        result = as_verl(func, "So #0.5", {"prompt": [USER]})
        assert result == {"score": 0.5, "helpfulness": 0.25, "brevity": -0.5, "truncated": 0}
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


@clients
def test_verl_s_labels_and_prompts_are_read_as_parquet_holds_them(kind):
    prompt = np.array([USER | {"tool_calls": None}], dtype=object)
    with serving() as (url, seen):
        func = kind(url).verl_compute_score("armorm")
        extra_info = {"prompt": prompt, "index": np.int64(3), "num_turns": None}
        assert as_verl(func, "So #0.5", extra_info, np.array(["4", "5"]))["score"] == 0.5
        with pytest.raises(TypeError, match=r"`ground_truth` holds a builtins\.bytes"):
            as_verl(func, "So #0.5", extra_info, {"target": b"4"})
        with pytest.raises(ValueError, match=r"`0`: .* tool's call \(`tool_calls`\)"):
            as_verl(func, "So #0.5", {"prompt": [USER | {"tool_calls": [1]}]})
    item = {"prompt": [USER], "responses": ["So #0.5"], "label": ["4", "5"]}
    assert seen[0][2]["items"] == [item]


@clients
@pytest.mark.parametrize("extra_info", [None, {}, {"index": 3}, {"prompt": None}])
def test_a_function_that_reads_no_prompt_demands_none_of_verl(kind, extra_info):
    refused = {"score": None, "error": "'armorm' scores a reply to a prompt", "transient": False}
    answer = {"id": "1", "created": 1, "results": [{"model": "armorm", "items": [[refused]]}]}
    with serving(None, (200, {}, answer)) as (url, seen):
        func = kind(url).verl_compute_score("armorm")
        assert as_verl(func, "So #0.5", extra_info)["score"] == 0.5
        with pytest.raises(
            RuntimeError, match=r"a reply to a prompt \(`extra_info` has no 'prompt'"
        ):
            as_verl(func, "So #0.5", extra_info)
    assert seen[0][2]["items"] == [{"responses": ["So #0.5"], "label": "gold"}]


@clients
def test_verl_logs_whether_a_text_was_cut(kind):
    with serving() as (url, _):
        func = kind(url).verl_compute_score("armorm")
        assert as_verl(func, "[cut] #0.5", {"prompt": "Why?"})["truncated"] == 1
