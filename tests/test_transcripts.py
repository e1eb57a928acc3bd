"""Turns that arrive as text are read or refused; a text that mentions them stays a text."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoply.data.layouts import pair_layout
from panoply.data.parse import as_dialogue, as_messages
from panoply.data.quarantine import BadRow
from panoply.data.validate import clean_pair, clean_prompt
from panoply.wire.chat_templates import TEMPLATES
from panoply.wire.templates import render

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Isn\'t it "so"?\nReally.'},
]
DIALOGUE = [*TURNS[1:], {"role": "assistant", "content": "It is."}]


def canonical(row: dict[str, Any]) -> tuple[list[Any], str, str]:
    """The prompt and both replies that a row of pairs comes to."""
    (raw,) = pair_layout(row).adapt(row)
    pair = clean_pair(raw, "s")
    return pair["prompt"], pair["chosen"], pair["rejected"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TURNS),
        json.dumps(TURNS, indent=2),
        "\n " + json.dumps(TURNS),
        json.dumps(json.dumps(TURNS)),
        str(TURNS),
        str(tuple(TURNS)),
        json.dumps([{"name": None, **turn, "tool_calls": None} for turn in TURNS]),
        json.dumps([{"from": turn["role"], "value": turn["content"]} for turn in TURNS]),
    ],
)  # fmt: skip
def test_messages_that_stand_as_json_or_as_python_prints_them_are_read(text: str) -> None:
    assert clean_prompt(as_messages(text)) == TURNS


@pytest.mark.parametrize(
    "text",
    [
        "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]",
        "array([{'content': 'a', 'role': 'user'}], dtype=object)",
        '[{"role": "user", "content": "What is',
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b',
        '[{"role": "robot", "content": "a"}]',
        '[{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]',
    ],
)
def test_messages_as_text_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(BadRow):
        as_messages(text)


@pytest.mark.parametrize("family", [name for name in TEMPLATES if name != "mistral"])
def test_a_prompt_that_a_template_rendered_is_read_as_its_turns(family: str) -> None:
    form = TEMPLATES[family]
    turns = [*DIALOGUE, {"role": "user", "content": "Why?"}]
    text = form.bos + render(turns, family) + form.openings["assistant"]
    assert clean_prompt(as_messages(text)) == turns
    end = form.ends[0]
    row = {"prompt": text, "chosen": f"So.{end}", "rejected": f"No.{end}"}
    assert canonical(row) == (turns, "So.", "No.")


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_start|>user\nWhy?<|im_end|>",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>Why?<\uff5cAssistant\uff5c>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|>",
        "<|start|>user<|message|>Why?<|end|><|start|>assistant",
        "GPT4 Correct User: Why?<|end_of_turn|>GPT4 Correct Assistant:",
        "Below is an instruction that describes a task.\n\n### Instruction:\nGo\n\n### Response:\n",
    ],
)
def test_a_rendered_prompt_that_cannot_be_taken_apart_is_refused(text: str) -> None:
    with pytest.raises(BadRow):
        clean_prompt(as_messages(text))


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("\n\nHuman: Why?\n\nAssistant:", "u"),
        ("Human: Why?\n\nAssistant:", "u"),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: ", "uau"),
        ("User: Hi\nAssistant: Hello\nUser: Why?\nAssistant:", "uau"),
        ("### Human: Hi\n### Assistant: Hello\n### Human: Why?\n### Assistant:", "uau"),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: Why?", "uau"),
    ],
)
def test_a_human_and_assistant_prompt_is_read_as_its_turns(text: str, roles: str) -> None:
    turns = clean_prompt(as_messages(text))
    assert "".join(turn["role"][0] for turn in turns) == roles
    assert turns[-1]["content"] == "Why?"


HONEST = [
    "What does <|im_start|>user mean in ChatML?",
    "<|im_start|> is a token of ChatML. Which role follows it?",
    "<|im_start|>user\nhi\nis what my tokenizer prints. Why?",
    "Is <s>struck</s> still HTML?",
    '[{"role": "user", "content": "hi"}] is what I send. Why does the API answer 400?',
    "[{'role': 'user', 'content': 'hi'}] raises a KeyError. Why?",
    '{"role": "user", "content": "hi"} is what I send. Is that right?',
    "Explain this JSON: " + json.dumps(DIALOGUE),
    '{"name": "Ann", "role": "admin"}',
    '[{"from": "Paris", "value": 3}]',
    "[1, 2, 3]",
    '"Quoted," she said.',
    "[citation needed] Why do people write that?",
    "{{ messages }} is empty in my template. Why?",
    "Human: that is what it says on the label. What is meant?",
    "Human: hi\n\nAssistant: hello\n\nSum up this dialogue.",
    "Human: hi\n\nAssistant: hello\n\nHuman: bye\n\nSum up this dialogue.",
    "Write a play. Human: hi\n\nAssistant: hello",
    "USER: what does this prefix mean?",
    "### Instruction: is that a heading in Markdown?",
    "[INST] stands in front of prompts of Mistral. What for?",
    "What is <extra_id_1> in T5?",
    "GPT4 Correct User: is a strange prefix.",
]


@pytest.mark.parametrize("text", HONEST)
def test_an_honest_text_that_mentions_such_things_stays_as_it_is(text: str) -> None:
    assert clean_prompt(as_messages(text)) == [{"role": "user", "content": text}]
    assert as_dialogue(text) is None or "\n\nAssistant:" in text
    reply = {"prompt": "q", "chosen": "a " + text, "rejected": "b " + text}
    assert canonical(reply)[1:] == ("a " + text, "b " + text)


def test_replies_that_are_dialogues_as_text_are_read() -> None:
    other = [*DIALOGUE[:-1], {"role": "assistant", "content": "No."}]
    for write in (json.dumps, str):
        row = {"chosen": write(DIALOGUE), "rejected": write(other)}
        assert canonical(row) == (DIALOGUE[:-1], "It is.", "No.")
        assert canonical({"prompt": DIALOGUE[0]["content"], **row})[0] == DIALOGUE[:-1]
    text = "Human: Why?\n\nAssistant: {}."
    row = {"chosen": text.format("So"), "rejected": text.format("No")}
    assert canonical(row) == ([{"role": "user", "content": "Why?"}], "So.", "No.")
    chatml = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    row = {"chosen": chatml.format("So."), "rejected": chatml.format("No.")}
    assert canonical(row) == ([{"role": "user", "content": "Why?"}], "So.", "No.")


def test_a_template_s_end_on_one_response_alone_is_refused() -> None:
    with pytest.raises(BadRow, match="ends one response alone"):
        canonical({"prompt": "q", "chosen": "a<|im_end|>", "rejected": "b"})
    assert canonical({"prompt": "q", "chosen": "a</s>", "rejected": "b"})[1:] == ("a</s>", "b")


# Prompts that stand in several places


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [user("Hi"), assistant("Hello")]
PLACES: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    ({"prompt": [user("Why?")]}, [user("Why?")]),
    ({"prompt": "Why?", "before": [user("Why? ")]}, [user("Why?")]),
    ({"prompt": "Hi", "before": [*FIRST, user("Why?")]}, [*FIRST, user("Why?")]),
    ({"prompt": "Why?", "before": [*FIRST, user("Why?")]}, [*FIRST, user("Why?")]),
    ({"prompt": [SYSTEM, user("Why?")], "before": [user("Why?")]}, [SYSTEM, user("Why?")]),
    ({"prompt": [user("Why?")], "before": [SYSTEM, user("Why?")]}, [SYSTEM, user("Why?")]),
    ({"prompt": "Why?", "system": "Be brief."}, [SYSTEM, user("Why?")]),
    ({"system": "Be brief.", "before": [user("Why?")]}, [SYSTEM, user("Why?")]),
    ({"system": "Be brief.", "before": [SYSTEM, user("Why?")]}, [SYSTEM, user("Why?")]),
    (
        {"prompt": "Why?", "history": [["Hi", "Hello"]], "system": "Be brief."},
        [SYSTEM, *FIRST, user("Why?")],
    ),
    ({"prompt": "Why?", "history": FIRST, "tools": "[]", "images": None}, [*FIRST, user("Why?")]),
    (
        {"prompt": "Why?", "before": [assistant("Let me look."), {"role": "tool", "content": "5"}]},
        [user("Why?"), assistant("Let me look."), {"role": "tool", "content": "5"}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "prompt"), PLACES)
def test_a_prompt_is_joined_from_the_places_that_state_it(columns: Any, prompt: Any) -> None:
    before = columns.get("before", [])
    row = {
        **columns,
        "chosen": [*before, assistant("So.")],
        "rejected": [*before, assistant("No.")],
    }
    stated, *replies = canonical(row)
    assert [(t["role"], t["content"].strip()) for t in stated] == [
        (t["role"], t["content"]) for t in prompt
    ]
    assert replies == ["So.", "No."]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": "Why?", "before": [user("When?")]}, "contradicts"),
        (
            {"system": "Be brief.", "before": [{**SYSTEM, "content": "Be long."}, user("Why?")]},
            "contradicts",
        ),
        ({"prompt": "Why?", "tools": [{"name": "f"}]}, "column 'tools'"),
        ({"prompt": "Why?", "tools": '[{"name": "f"}]'}, "column 'tools'"),
        ({"prompt": "Why?", "images": ["a.png"]}, "column 'images'"),
        ({"prompt": "Why?", "history": "earlier"}, "'history'"),
        ({"prompt": "Why?", "history": [["Hi", None]]}, "'history'"),
        ({"prompt": [*FIRST]}, "must end with a user or tool turn"),
        ({"prompt": [user("Hi"), assistant(""), user("Why?")]}, "empty assistant turn"),
        ({"prompt": [{**user("Why?"), "name": "Ann"}]}, "has a name"),
    ],
)  # fmt: skip
def test_a_prompt_that_is_contradicted_or_not_whole_is_refused(columns: Any, reason: str) -> None:
    before = columns.get("before", [])
    row = {
        **columns,
        "chosen": [*before, assistant("So.")],
        "rejected": [*before, assistant("No.")],
    }
    with pytest.raises(BadRow, match=reason):
        canonical(row)


def test_trajectories_that_differ_before_their_last_turns_are_no_pair() -> None:
    tool = {"role": "tool", "content": "5"}
    chosen = [assistant("Look."), tool, assistant("It is 5.")]
    rejected = [assistant("Guess."), tool, assistant("It is 4.")]
    with pytest.raises(BadRow, match="do not share a prompt"):
        canonical({"prompt": "q", "chosen": chosen, "rejected": rejected})


MARKS = [
    *("[", "]", "{", "}", "(", '"', "'", ":", ",", "\\", "\n", " ", "x", "role", "content", "user"),
    *("Human:", "Assistant:", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<extra_id_1>"),
]


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(MARKS)).map("".join))
def test_whatever_a_text_is_it_gives_turns_or_a_reason(text: str) -> None:
    try:
        turns = as_messages(text)
    except BadRow:
        return
    assert all(set(turn) == {"role", "content"} for turn in turns)
