"""Functions as scorers: their arguments, what they may return, and what becomes of faults."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from panoply.scorers.function import FunctionScorer, load_function
from panoply.wire.request import Chat, Details, RenderedText, Tokens

USER = {"role": "user", "content": "What is 6 times 7?"}
CHAT = Chat((USER,), ("It is 42.", "41"), 42)


def scores(function, *items, **settings):
    """The scores of items, by item."""
    return asyncio.run(FunctionScorer(function, **settings).score(items))


def first(function, item=CHAT):
    return scores(function, item)[0][0]


def write(folder, text, name="rewards.py"):
    path = folder / name
    path.write_text(text)
    return path


# What it is told, what it returns


def test_a_function_is_told_prompt_response_and_label_of_each_response_in_turn():
    calls = []

    def reward(prompt, response, label):
        calls.append((prompt, response, label))
        return len(response)

    results = scores(reward, CHAT, Chat((USER,), ()), Chat((USER,), ("x",)), max_concurrent=1)
    assert [[score.score for score in item] for item in results] == [[9, 2], [], [1]]
    assert calls == [([USER], "It is 42.", 42), ([USER], "41", 42), ([USER], "x", None)]


def test_it_may_leave_out_what_it_does_not_read_and_may_be_a_coroutine_or_an_object():
    async def later(response):
        await asyncio.sleep(0)
        return len(response)

    class Judge:
        async def __call__(self, response, label=None):
            return float(str(label) in response)

    assert first(later).score == 9
    assert first(partial(later)).score == 9
    assert [score.score for score in scores(Judge(), CHAT)[0]] == [1, 0]
    assert first(lambda response, **columns: len(columns)).score == 2
    assert first(lambda *, response, scale=2: scale * len(response)).score == 18


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_of_lists_gets_all_responses_of_a_call_at_once(is_async):
    calls = []

    def reward(prompts, responses, labels):
        calls.append((prompts, responses, labels))
        return [len(response) for response in responses]

    async def later(prompts, responses, labels):
        return reward(prompts, responses, labels)

    other = Chat(({"role": "user", "content": "Why?"},), ("x",))
    results = scores(later if is_async else reward, CHAT, Tokens(((1, 2),)), other)
    assert [[score.score for score in item] for item in results] == [[9, 2], [None], [1]]
    assert calls == [
        ([[USER], [USER], list(other.prompt)], ["It is 42.", "41", "x"], [42, 42, None])
    ]
    assert scores(later if is_async else reward) == ()
    assert len(calls) == 1


def test_a_prompt_is_a_copy_that_the_function_may_write_into():
    def reward(prompt, response):
        prompt[0]["content"] += "!"
        prompt.append(response)
        return len(prompt[0]["content"])

    length = len(USER["content"]) + 1
    assert [score.score for score in scores(reward, CHAT)[0]] == [length, length]


def test_text_through_a_template_is_told_as_such_and_token_ids_are_an_error():
    def reward(prompt, response, label):
        return {"score": len(response), "turns": len(prompt), "told": prompt == [rendered]}

    rendered = {"role": "rendered", "content": "<|user|>Why?<|end|>"}
    split = scores(reward, RenderedText(rendered["content"], ("So.",)))[0][0]
    whole = scores(reward, RenderedText("", ("<|user|>Why?<|end|>So.",)))[0][0]
    assert split.details.objectives == {"turns": 1, "told": 1}
    assert whole.details.objectives == {"turns": 0, "told": 0}
    (token,) = scores(reward, Tokens(((1, 2),)))[0]
    assert "token ids have no text" in token.error


def test_a_response_alone_has_an_empty_prompt_and_a_name_stays_in_its_message():
    prompts = []

    def reward(prompt, response):
        prompts.append(prompt)
        return len(response)

    tool = {"role": "tool", "content": "5", "name": "add"}
    items = Chat((), ("x", "xy")), Chat((USER, tool), ("z",))
    assert [[s.score for s in item] for item in scores(reward, *items, max_concurrent=1)] == [
        [1, 2],
        [1],
    ]
    assert prompts == [[], [], [USER, tool]]


@pytest.mark.parametrize("number", [1, True, np.float32(1), np.int64(1), np.ones(()), Fraction(1)])
def test_any_kind_of_number_is_a_score(number):
    assert first(lambda response: number).score == 1
    assert first(lambda response: {"score": number}).score == 1


def test_the_other_numbers_of_a_dict_are_objectives():
    returned = {"score": 0, "tone": 0.5, "polite": True, "why": "short", "nan": float("nan")}
    results = first(lambda response: returned | {"nothing": None})
    assert results.score == 0
    assert results.details == Details(objectives={"tone": 0.5, "polite": 1})


# What goes wrong


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "no score: the function gave none"),
        ({"score": None}, "no score: the function gave none"),
        ({"reward": 1}, r"no score: no `score` in \['reward'\]"),
        (float("nan"), "not finite: nan"),
        ({"score": float("-inf")}, "not finite: -inf"),
        ("1.0", "returned a str; a number"),
        ([1.0], "returned a list; a number"),
        (10**400, "raised OverflowError"),
        (np.ones(3), "raised TypeError"),
    ],
)
def test_what_is_no_number_is_no_score_and_never_0(returned, message):
    results = first(lambda response: returned)
    assert results.score is None
    assert not results.transient
    assert re.search(message, results.error)


def test_an_exception_is_the_error_of_its_own_response():
    def reward(response):
        return 1 / (len(response) - 2)

    good, bad = scores(reward, CHAT)[0]
    assert good.score == 1 / 7
    assert re.fullmatch(r"the function raised ZeroDivisionError at test_.*\.py:\d+", bad.error)


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), TimeoutError("its own")])
@pytest.mark.parametrize("is_async", [False, True])
def test_no_exception_stops_the_arm(error, is_async):
    def reward(response):
        raise error

    async def later(response):
        reward(response)

    results = first(later if is_async else reward)
    kind = "RuntimeError" if is_async and isinstance(error, StopIteration) else type(error).__name__
    assert results.error.startswith(f"the function raised {kind} at ")


def test_a_list_of_another_length_is_an_error_of_all_its_responses():
    for returned, message in (([1.0], "returned 1 for 2"), (0.5, "float"), ("ab", "returned str")):
        results = scores(lambda responses, returned=returned: returned, CHAT)[0]
        assert all(message in score.error for score in results)
    results = scores(lambda responses: iter([1, None]), CHAT)[0]
    assert [score.score for score in results] == [1, None]
    failed = scores(lambda responses: 1 / 0, CHAT)[0]
    assert all("ZeroDivisionError" in score.error for score in failed)


# Time


def test_calls_run_beside_each_other_but_not_more_than_are_allowed():
    running, most = 0, 0
    lock = threading.Lock()

    def reward(response):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return 1

    results = scores(reward, Chat((USER,), ("x",) * 9), max_concurrent=3)[0]
    assert [score.score for score in results] == [1] * 9
    assert most == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_over_its_time_is_an_error_and_the_others_are_not(is_async):
    stop = threading.Event()

    def reward(response):
        if response == "41":
            stop.wait(20)
        return 1

    async def later(response):
        if response == "41":
            await asyncio.sleep(20)
        return 1

    start = time.monotonic()
    good, slow = scores(later if is_async else reward, CHAT, timeout=1.0)[0]
    stop.set()
    assert time.monotonic() - start < 15
    assert good.score == 1
    assert slow.error == "the function did not return within 1 s"


def test_calls_that_hang_do_not_hold_up_new_ones_until_there_are_too_many():
    stop = threading.Event()

    def reward(response):
        if response == "hang":
            stop.wait(20)
        return 1

    async def ask():
        scorer = FunctionScorer(reward, timeout=0.5, max_concurrent=2)
        single, many = Chat((USER,), ("hang",)), Chat((USER,), ("x", "x"))
        assert "did not return" in (await scorer.score([single]))[0][0].error
        assert [score.score for score in (await scorer.score([many]))[0]] == [1, 1]
        await scorer.score([single])
        refused = (await scorer.score([many]))[0]
        assert all(score.transient and "2 calls" in score.error for score in refused)
        stop.set()
        await asyncio.sleep(0.1)
        assert [score.score for score in (await scorer.score([many]))[0]] == [1, 1]

    asyncio.run(ask())


def test_a_call_that_hangs_does_not_keep_the_process():
    code = """if True:
        import asyncio, time
        from panoply.scorers.function import FunctionScorer
        from panoply.wire.request import Chat
        arm = FunctionScorer(lambda response: time.sleep(60), timeout=0.1)
        print(asyncio.run(arm.score([Chat((), ("x",))]))[0][0].error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "did not return" in done.stdout


# Where it is found


def test_a_function_is_found_in_a_file_or_a_package(tmp_path, monkeypatch):
    source = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 3\n"
    path = write(tmp_path, source + "def reward(response: 'str') -> float:\n    return A().x\n")
    scorer = load_function(f"{path}:reward", timeout=3)
    assert asyncio.run(scorer.score([CHAT]))[0][0].score == 3
    monkeypatch.chdir(tmp_path)
    assert load_function("rewards.py:reward")
    scorer = load_function("panoply.serve.verifiers:length")
    assert asyncio.run(scorer.score([CHAT]))[0][0].score == 9


def test_files_of_one_name_are_two_modules(tmp_path):
    scorers = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(folder, f"def reward(response):\n    return {number}\n")
        scorers.append(load_function(f"{path}:reward"))
    assert [asyncio.run(scorer.score([CHAT]))[0][0].score for scorer in scorers] == [1, 2]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("rewards", r"named 'package\.module:name' or 'path/to/file\.py:name', got 'rewards'"),
        ("rewards:", "got 'rewards:'"),
        (":reward", "got ':reward'"),
        ("rewards:a b", "got 'rewards:a b'"),
        ("nowhere.at.all:reward", "no module 'nowhere.at.all': 'nowhere' is not on the path"),
        ("panoply.serve.nothing:reward", "'panoply.serve.nothing' is not on the path"),
        ("nowhere.py:reward", "no file 'nowhere.py' in '/"),
        ("panoply.serve.verifiers:last", "has no 'last'; what can be called .*'last_number'"),
        ("panoply.wire.request:FLOAT32_MAX", "is of type float, not a function"),
        ("panoply.wire.request:Chat", "'Chat' is a class, not a function"),
    ],
)
def test_what_cannot_be_found_is_told(where, message):
    with pytest.raises(ValueError, match=message):
        load_function(where)


def test_a_module_that_cannot_be_imported_is_told_with_its_own_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "import not_installed_here\n", "imports.py")
    with pytest.raises(ValueError, match=r"'imports' failed with ModuleNotFoundError: .*not_inst"):
        load_function("imports:reward")
    path = write(tmp_path, "def reward(:\n")
    with pytest.raises(ValueError, match=r"rewards\.py' failed with SyntaxError"):
        load_function(f"{path}:reward")
    write(tmp_path, "1 / 0\n")
    with pytest.raises(ValueError, match="failed with ZeroDivisionError: division by zero"):
        load_function(f"{path}:reward")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda text: 1, r"it needs \['text'\]"),
        (lambda prompts, completions: 1, "it needs"),
        (lambda prompt, label: 1, "it takes no `response`"),
        (lambda **columns: 1, "it takes no `response`"),
        (lambda response, /: 1, "it takes no `response`"),
        (lambda response, labels: 1, r"it needs \['labels'\]"),
        (3, "is of type int, not a function"),
    ],
)
def test_a_signature_that_does_not_fit_is_told_before_anything_is_called(function, message):
    with pytest.raises(ValueError, match=message):
        FunctionScorer(function)


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="`timeout` must be positive, got 0"):
        FunctionScorer(len_of, timeout=0)
    with pytest.raises(ValueError, match="`max_concurrent` must be at least 1, got 0"):
        FunctionScorer(len_of, max_concurrent=0)


def len_of(response):
    return len(response)


def test_function_arms_load_neither_torch_nor_ray():
    code = "import sys, panoply.scorers.function, panoply.serve.verifiers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "transformers"} & set(done.stdout.split())
