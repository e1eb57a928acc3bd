"""The one reader of messages: a raw message becomes its role and its text, or a reason.

Files, requests, prompts of a policy and Python all read through it, so that a conversation means
the same on every path. Nothing of a message is dropped without a word: what a reward model's
template could not be given (a tool's call, an image, reasoning beside the content) is a reason.

1. `developer` is read as `system` and `function` as `tool`, as OpenAI renamed them; ShareGPT's
   `from` and `value` with `human`, `gpt` and `observation` are read too.
2. A key whose value is null, NaN or empty is no key, and so is a record of such keys: rows of data
   sets have all keys, and Arrow fills records up with nulls.
3. Text parts are joined by line breaks, as vLLM joins them.
4. A prompt ends with a user's or a tool's turn, and responses stand apart. A response is one text:
   of a trajectory (assistant, tool, assistant) the last turn is scored, behind the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

Turn: TypeAlias = dict[str, str]
"""A read message: `role`, `content`, and `name` where it has one."""

ROLES = ("system", "user", "assistant", "tool")
RENAMED_ROLES: Mapping[str, str] = {"developer": "system", "function": "tool"}
SHAREGPT_ROLES: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}
CALLS = ("tool_calls", "function_call", "tool_call_id", "tools")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold what a policy thought before its reply."""
TEXT_PARTS = ("text", "input_text", "output_text")
LABELS = ("id", "message_id", "parent_id", "timestamp", "created_at", "lang", "language", "model")
"""Keys that say something of a message and are no content; so is every number and flag."""


def read_message(message: object) -> Turn:
    """Returns role and content of a message, and its name where it has one.

    Raises:
        ValueError: it is no record of role and text, or holds what is not text; the reason
            quotes no content.
    """
    if not isinstance(message, Mapping):
        raise ValueError("message is no record of role and content")
    keys = cast(Mapping[Any, Any], message)
    role, content = keys.get("role"), keys.get("content")
    if len(keys) == 2 and role in ROLES and type(content) is str:
        return {"role": cast(str, role), "content": content}
    present = {key: value for key, value in keys.items() if not is_empty(value)}
    is_sharegpt = "from" in present and "role" not in present
    role = _role(present.pop("from" if is_sharegpt else "role", None), is_sharegpt)
    text = "value" if "value" in present and "content" not in present else "content"
    present.pop(text, None)
    name = present.pop("name", None)
    for key, value in present.items():
        if reason := _unread(key, value):
            raise ValueError(reason)
    turn = {"role": role, "content": join_parts(keys.get(text))}
    if name is None:
        return turn
    if not isinstance(name, str):
        raise ValueError("message has a name that is no text")
    return {**turn, "name": name}


def is_null(value: object) -> bool:
    """Returns whether a value is missing: null, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: object, levels: int = 8) -> bool:
    """Returns whether the value of a key is as good as no key: missing, or nothing in it.

    Args:
        value: of a key of a message or of a row.
        levels: how deep what it holds is looked at, for a hostile value is nested without end.
    """
    if isinstance(value, dict | list):
        held = cast("dict[object, object]", value).values() if isinstance(value, dict) else value
        inner = cast("Sequence[object]", held)
        return not inner or (levels > 0 and all(is_empty(each, levels - 1) for each in inner))
    return is_null(value) or value == ""


def _role(role: object, is_sharegpt: bool) -> str:
    if isinstance(role, str):
        names = SHAREGPT_ROLES if is_sharegpt else RENAMED_ROLES
        read_as = names.get(role, role)
        if read_as in ROLES and (not is_sharegpt or role in names):
            return read_as
        if is_sharegpt and role == "function_call":
            raise ValueError("message holds a tool's call, which is not rendered")
    expected = SHAREGPT_ROLES if is_sharegpt else (*ROLES, *RENAMED_ROLES)
    raise ValueError(f"message has the unknown role {role!r:.40}, not one of {', '.join(expected)}")


def _unread(key: object, value: object) -> str:
    """Returns the reason why a key cannot be left out; empty where it is no content."""
    if key in CALLS:
        return f"message holds a tool's call (`{key}`), which is not rendered"
    if key in THOUGHTS:
        return (
            f"message holds reasoning beside its content (`{key}`): write it into the content, or "
            "leave it out"
        )
    if key in LABELS or isinstance(value, bool | int | float):
        return ""
    return (
        f"message has the key {key!r:.40}, which is not read: write its text into the content, or "
        "leave it out"
    )


def join_parts(content: object) -> str:
    """Returns content as one text, its text parts on lines of their own.

    Raises:
        ValueError: there is none, or a part is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError("message without text")
    return "\n".join(map(_part_text, cast("list[object]", content)))


def _part_text(part: object) -> str:
    if not isinstance(part, Mapping):
        raise ValueError("message has content that is neither text nor a list of text parts")
    keys = cast(Mapping[Any, Any], part)
    kind, text = keys.get("type"), keys.get("text")
    if kind not in TEXT_PARTS:
        raise ValueError(f"message has a part of type {kind!r:.40}, and text alone is read")
    for key, value in keys.items():
        if key not in ("type", "text") and not is_empty(value) and (why := _unread(key, value)):
            raise ValueError(why)
    if not isinstance(text, str):
        raise ValueError("message has a text part without text")
    return text


def read_prompt(prompt: object) -> list[Turn]:
    """Returns the turns of a prompt; a text is one turn of the user's.

    Raises:
        ValueError: a message cannot be read, or the last turn is neither a user's nor a tool's.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        kind = type(prompt).__name__
        raise ValueError(
            f"a prompt is a list of messages or a user's text, got {kind}: make it a list"
        )
    turns = [read_message(message) for message in cast("Sequence[object]", prompt)]
    check_prompt_end(turns)
    return turns


def check_prompt_end(turns: Sequence[Mapping[str, str]]) -> None:
    """Checks that a prompt ends where a response may follow.

    Raises:
        ValueError: there is no turn, or the last one is neither a user's nor a tool's.
    """
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise ValueError("a prompt must end with a user or tool turn; responses stand apart")


def check_responses(responses: object) -> None:
    """Checks that responses are a list of texts.

    Raises:
        ValueError: they are one text, or one of them is missing or no text.
    """
    if isinstance(responses, str | bytes) or not isinstance(responses, Sequence):
        advice = "put a single one into a list" if isinstance(responses, str) else "make it a list"
        raise ValueError(f"responses are a list of texts, got {type(responses).__name__}: {advice}")
    for i, response in enumerate(cast("Sequence[object]", responses)):
        if not isinstance(response, str):
            kind = "is missing (None)" if response is None else f"is {type(response).__name__}"
            raise ValueError(f"response {i} {kind}, and only a text has a score: leave it out")
