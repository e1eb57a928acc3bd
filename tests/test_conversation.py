"""One reader of messages: what it reads, what it refuses, and that files and requests agree."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from panoply.data.ingest import IngestLimits, ingest_pairs
from panoply.data.read import Input
from panoply.data.tasks import read_tasks
from panoply.wire.conversation import check_responses, read_message, read_prompt
from panoply.wire.messages import PromptTurns, messages

REQUEST: TypeAdapter[Any] = TypeAdapter(PromptTurns)
READ = [
    ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
    ({"role": "function", "content": "x"}, {"role": "tool", "content": "x"}),
    ({"role": "user", "content": "x", "name": None}, {"role": "user", "content": "x"}),
    ({"role": "user", "content": "x", "tool_calls": []}, {"role": "user", "content": "x"}),
    ({"role": "assistant", "content": "x", "thinking": ""}, {"role": "assistant", "content": "x"}),
    ({"from": "human", "value": "x"}, {"role": "user", "content": "x"}),
    ({"from": "gpt", "value": "x", "role": None}, {"role": "assistant", "content": "x"}),
    ({"from": "observation", "value": "x"}, {"role": "tool", "content": "x"}),
    ({"from": "human", "content": "x"}, {"role": "user", "content": "x"}),
    ({"role": "user", "value": "x"}, {"role": "user", "content": "x"}),
    (
        {"role": "user", "content": "x", "function_call": {"name": None, "arguments": None}},
        {"role": "user", "content": "x"},
    ),
    (
        {"role": "user", "content": "x", "tool_calls": [{"id": None}]},
        {"role": "user", "content": "x"},
    ),
    ({"role": "user", "content": "x", "weight": 1, "id": "a7"}, {"role": "user", "content": "x"}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "a\nb"},
    ),
    (
        {"role": "user", "content": [{"type": "input_text", "text": "a", "image_url": None}]},
        {"role": "user", "content": "a"},
    ),
]  # fmt: skip
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REFUSED = [
    ({"role": "assistant", "content": "", "tool_calls": [CALL]}, "tool's call (`tool_calls`)"),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool's call"),
    ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "`function_call`"),
    ({"role": "tool", "content": "x", "tool_call_id": "a"}, "`tool_call_id`"),
    ({"role": "assistant", "content": "x", "reasoning_content": "Hm."}, "reasoning beside"),
    ({"role": "assistant", "content": "x", "thinking": "Hm."}, "reasoning beside"),
    ({"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}]}, "'thinking'"),
    ({"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}, "'tool_use'"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, "'image_url'"),
    ({"role": "user", "content": ["a"]}, "neither text nor a list of text parts"),
    ({"role": "user", "content": None}, "without text"),
    ({"role": "user", "content": []}, "without text"),
    ({"role": "user", "content": {"text": "a"}}, "without text"),
    ({"role": "user", "content": "x", "images": ["a.png"]}, "key 'images'"),
    ({"role": "User", "content": "x"}, "unknown role 'User'"),
    ({"role": "narrator", "content": "x"}, "unknown role 'narrator'"),
    ({"role": None, "content": "x"}, "unknown role None"),
    ({"role": ["user"], "content": "x"}, "unknown role"),
    ({"from": "function_call", "value": "{}"}, "tool's call"),
    ({"from": "bystander", "value": "x"}, "unknown role 'bystander'"),
    ({"role": "user", "content": "x", "name": 3}, "name that is no text"),
    ("x", "no record of role and content"),
    (None, "no record of role and content"),
]


@pytest.mark.parametrize(("message", "turn"), READ)
def test_a_message_is_read_alike_from_files_and_requests(message: Any, turn: Any) -> None:
    assert read_message(message) == turn
    after = [{"role": "user", "content": "q"}]
    assert messages(REQUEST.validate_python([message, *after]))[0] == turn


def test_the_nan_of_pandas_is_no_key_and_no_text() -> None:
    nan = float("nan")
    turn = {"role": "user", "content": "x"}
    assert read_message({**turn, "name": nan, "tool_calls": nan}) == turn
    with pytest.raises(ValueError, match="without text"):
        read_message({"role": "user", "content": nan})


@pytest.mark.parametrize(("message", "reason"), REFUSED)
def test_a_message_that_is_no_text_is_refused_everywhere_with_the_reason(
    tmp_path: Path, message: Any, reason: str
) -> None:
    after = [{"role": "user", "content": "q"}]
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_prompt([message, *after])
    with pytest.raises(ValidationError, match=re.escape(reason)):
        REQUEST.validate_python([message, *after])
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "prompt": [message, *after]}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = ingest_pairs([Input(file)], tmp_path / "out", IngestLimits(max_quarantine_share=1.0))
    assert (sum(pairs.num_rows.values()), len(pairs.num_quarantined)) == (1, 1)
    assert all(reason in why for why in pairs.num_quarantined)
    with pytest.raises(ValueError, match=r"p\.jsonl, row 2: "):
        read_tasks(Input(file))


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": "system", "content": "q"}],
        None,
        {"role": "user", "content": "q"},
        3,
    ],
)
def test_a_prompt_behind_which_no_response_stands_is_refused(prompt: Any) -> None:
    with pytest.raises(
        ValueError, match=r"must end with a user or tool turn|a prompt is a list of messages"
    ):
        read_prompt(prompt)


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        ("a string", "list of texts, got str: put a single one into a list"),
        (None, "list of texts, got NoneType"),
        ({"a"}, "list of texts, got set: make it a list"),
        ([None], r"response 0 is missing \(None\)"),
        (["a", 3], "response 1 is int"),
        (["a", ["b"]], "response 1 is list"),
    ],
)
def test_responses_that_are_no_list_of_texts_are_refused(responses: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_responses(responses)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "text", "tool"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "name", "from", "value", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(VALUES)
def test_whatever_a_message_is_the_reader_gives_texts_or_a_reason(value: Any) -> None:
    try:
        turn = read_message(value)
    except ValueError:
        return
    assert set(turn) <= {"role", "content", "name"}
    assert all(isinstance(text, str) for text in turn.values())
