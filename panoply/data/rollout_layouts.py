"""Layouts of rollouts: what trainers and environments write of their samples.

| file | prompt | response | reward |
| --- | --- | --- | --- |
| TRL's completions | `prompt` | `completion` | the reward's column; of several `advantage` |
| verl's and OpenRLHF's dump | `input` | `output` | `score`, `reward` |
| NeMo-Gym's rollouts | `responses_create_params` | `response` | `reward`, its components |
| `samples.parquet` of ours | `prompt` | `responses` | `verdicts` |
| other rows | `prompt`, `question`, ... | `response` or `responses` | `reward` or `rewards` |

A row that cannot be read raises `BadRow`, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

from pydantic import JsonValue

from panoply.data.dialogue import PromptColumn, prompt_column, take_reply
from panoply.data.parse import as_messages, number
from panoply.data.prompts import with_context
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.data.schema import Message, Prompt
from panoply.data.validate import MARKERS, clean_prompt
from panoply.wire.conversation import is_null, join_parts

RESPONSES = ("completion", "response", "output")
LISTS = ("responses", "completions", "outputs")
REWARDS = ("reward", "score")
REWARD_LISTS = ("rewards", "scores", "verdicts")
LABELS = ("label", "answer", "ground_truth", "gts", "expected_answer", "solution")
STEPS = ("step", "global_step", "global_steps")
COMPONENTS = "reward_components"
GYM = "responses_create_params"
HEADER = re.compile(r"^(system|user|assistant)[ \t]*$", re.MULTILINE)
"""Role of a turn as it stays where special tokens are left out in decoding."""
LAYOUTS = (
    "prompt, completion (TRL's)",
    "input, output (verl's, OpenRLHF's)",
    f"{GYM}, response (NeMo-Gym's)",
    "prompt, response",
    "prompt, responses",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A response that was sampled, and the reward that it had."""

    prompt: Prompt
    response: str
    reward: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    """Rewards by reward function, or by component."""
    label: JsonValue = None
    step: str = ""


Adapt: TypeAlias = Callable[[Row], list[Sample]]


def rollout_layout(columns: Mapping[str, bool]) -> Adapt:
    """Returns what takes the rows of a file of rollouts apart.

    Args:
        columns: whether the column holds numbers, by name.

    Raises:
        ValueError: the columns are of no known layout.
    """
    if GYM in columns and "response" in columns:
        return _gym
    prompt = _prompt_column(columns)
    response = next((name for name in RESPONSES if name in columns), None)
    several = next((name for name in LISTS if name in columns), None)
    if prompt is not None and several is not None:
        return partial(_of_lists, prompt=prompt, responses=several)
    if prompt is not None and response is not None:
        reward, parts = _reward_columns(columns)
        return partial(_of_row, prompt=prompt, response=response, reward=reward, parts=parts)
    if several is not None and "prompt_id" in columns:
        raise ValueError(
            "the file has `prompt_id` and no prompts: it was written by an earlier version, which "
            "kept none; sample again, or join the prompts and name their column by --columns "
            "prompt=COLUMN"
        )
    raise ValueError(
        f"unknown layout for rollouts: columns {sorted(columns)}; known layouts: "
        f"{'; '.join(LAYOUTS)}. Where names differ, say which column is which, as in --columns "
        "prompt=question,response=answer,reward=accuracy"
    )


def _prompt_column(columns: Mapping[str, bool]) -> PromptColumn | None:
    column = prompt_column(columns)
    if column is not None and column.name == "input":
        return PromptColumn("input", _unmarked)
    return column


def _reward_columns(columns: Mapping[str, bool]) -> tuple[str, tuple[str, ...]]:
    """Returns the column of the reward, and those of its parts, which TRL alone names.

    TRL's file has a column for each reward function, and not their weights: what it trained on is
    their sum by these weights, which within a group orders as `advantage` does.
    """
    named = next((name for name in REWARDS if name in columns), "")
    if "advantage" not in columns:
        return named, ()
    other = {"advantage", *STEPS, *REWARDS, *LABELS}
    parts = tuple(name for name, numeric in columns.items() if numeric and name not in other)
    return named or (parts[0] if len(parts) == 1 else "advantage"), parts


# Rows


def _of_row(
    row: Row, prompt: PromptColumn, response: str, reward: str, parts: Sequence[str]
) -> list[Sample]:
    turns, reply = take_reply(prompt.read(row), row.get(response))
    by_part = {name: number(row.get(name)) for name in parts} or _components(row)
    rewarded = number(row.get(reward)) if reward else None
    return [_sample(row, turns, reply, rewarded, by_part)]


def _of_lists(row: Row, prompt: PromptColumn, responses: str) -> list[Sample]:
    turns, replies = prompt.read(row), row.get(responses)
    if not isinstance(replies, list) or not replies:
        raise BadRow(f"{responses!r} is no list of responses")
    texts = cast("list[object]", replies)
    rewards = next((row[name] for name in REWARD_LISTS if isinstance(row.get(name), list)), None)
    values = [None] * len(texts) if rewards is None else cast("list[object]", rewards)
    if len(values) != len(texts):
        raise BadRow(f"{len(texts)} responses have {len(values)} rewards")
    samples: list[Sample] = []
    for text, value in zip(texts, values, strict=True):
        before, reply = take_reply(turns, text)
        samples.append(_sample(row, before, reply, number(value), {}))
    return samples


def _sample(
    row: Row,
    turns: Sequence[Message],
    reply: object,
    reward: float | None,
    parts: Mapping[str, float | None],
) -> Sample:
    if not isinstance(reply, str):
        raise BadRow("missing response" if reply is None else "response is no text")
    end = next((mark for mark in MARKERS if reply.endswith(mark)), "")
    label = next((row[name] for name in LABELS if not is_null(row.get(name))), None)
    step = next((str(row[name]) for name in STEPS if not is_null(row.get(name))), "")
    prompt = clean_prompt(with_context(row, turns))
    answer = cast(JsonValue, label)
    return Sample(prompt, reply.removesuffix(end), reward, parts, answer, step)


def _components(row: Row) -> dict[str, float | None]:
    components = row.get(COMPONENTS)
    if not isinstance(components, Mapping):
        return {}
    return {str(name): number(value) for name, value in cast(Mapping[Any, Any], components).items()}


def _unmarked(row: Row) -> list[Message]:
    r"""Returns the turns of `input`, which verl decodes without the marks of its chat template.

    What is left of ChatML is each role on a line of its own, `user\nWhy?\nassistant\n`.

    Raises:
        BadRow: roles are left that do not stand on lines of their own, as of Llama 3's template.
    """
    text = row.get("input")
    if not isinstance(text, str) or not re.match(r"(?:system|user)\n", text):
        return as_messages(text)
    _, *parts = HEADER.split(text)
    roles, contents = parts[::2], [content.strip() for content in parts[1::2]]
    turns = roles[1:] if roles[0] == "system" else roles
    alternating = (["user", "assistant"] * len(turns))[: len(turns)]
    if turns != alternating or turns[-1:] != ["assistant"] or contents[-1]:
        raise BadRow(
            "the prompt was decoded without its template's marks, and its turns cannot be told "
            "apart: dump it with special tokens"
        )
    pairs = zip(roles[:-1], contents[:-1], strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


# NeMo-Gym


def _gym(row: Row) -> list[Sample]:
    """Returns the sample of a row in the format of OpenAI's Responses API."""
    params, response = row.get(GYM), row.get("response")
    if not isinstance(params, Mapping) or not isinstance(response, Mapping):
        raise BadRow(f"{GYM!r} or 'response' is no record")
    request = cast(Mapping[str, object], params)
    if request.get("tools"):
        raise BadRow("the prompt offers tools, and no template is given them here")
    turns = _gym_turns(request.get("input"))
    if instructions := request.get("instructions"):
        turns = [{"role": "system", "content": str(instructions)}, *turns]
    output = cast(Mapping[str, object], response).get("output")
    records = cast("list[Any]", output) if isinstance(output, list) else []
    messages = [record for record in records if _kind(record) == "message"]
    if others := {_kind(record) for record in records} - {"message", "reasoning"}:
        raise BadRow(f"response has output of type {min(others)!r:.40}, and text alone is read")
    if len(messages) != 1:
        raise BadRow(f"response has {len(messages)} messages, and one is scored")
    try:
        reply = join_parts(messages[0].get("content"))
    except ValueError as error:
        raise BadRow(str(error)) from error
    return [_sample(row, turns, reply, number(row.get("reward")), _components(row))]


def _gym_turns(value: object) -> list[Message]:
    if not isinstance(value, list):
        return as_messages(value)
    turns: list[object] = []
    for record in cast("list[Any]", value):
        if _kind(record) != "message":
            raise BadRow("the prompt has tool calls, and text alone is read")
        turns.append({key: record[key] for key in ("role", "content") if key in record})
    return as_messages(turns)


def _kind(record: object) -> str:
    """Returns the type of a record of the Responses API, in which a message may name none."""
    if not isinstance(record, Mapping):
        return ""
    return str(cast(Mapping[str, object], record).get("type") or "message")
