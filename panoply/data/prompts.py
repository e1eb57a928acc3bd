"""One prompt of a row, from the columns and dialogues that state it.

A prompt may stand in a column of its own, in front of each response, and in `system` and `history`
columns beside it. What agrees is one prompt, what contradicts is a reason; and a column of what
cannot be rendered (tools, images) is a reason where it holds something.

A trajectory (assistant, tool, assistant) as a response is scored at its last turn, behind the turns
before it; so two responses of a pair differ in their last turns alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from panoply.data.parse import as_messages
from panoply.data.quarantine import BadRow
from panoply.data.schema import Message
from panoply.wire.conversation import is_empty

SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that may hold the text of a system turn."""
NOT_RENDERED = (
    *("tools", "functions", "documents", "images", "image", "image_path", "image_paths"),
    *("image_url", "image_urls", "videos", "video", "audios", "audio"),
)
"""Columns of a conversation that no reward model's template is given here."""
NOTHING = ("", "[]", "{}", "null", "None", "nan")
"""Texts that stand for an empty column in CSV files."""


def with_context(row: Mapping[str, object], prompt: Sequence[Message]) -> list[Message]:
    """Returns a prompt behind the turns in the row's columns `history` and SYSTEM.

    Raises:
        BadRow: a column holds what is not rendered, cannot be read, or contradicts the prompt.
    """
    for name in NOT_RENDERED:
        if name in row and not _is_nothing(row[name]):
            raise BadRow(f"column {name!r} holds something, and no template is given it here")
    if not prompt:
        return []
    turns = join_prompts(_history(row.get("history")), prompt)
    for name in SYSTEM:
        if name in row and not _is_nothing(row[name]):
            turns = _with_system(turns, name, row[name])
    return turns


def _with_system(turns: list[Message], name: str, text: object) -> list[Message]:
    if not isinstance(text, str):
        raise BadRow(f"column {name!r} is no text")
    system: Message = {"role": "system", "content": text}
    if turns[0]["role"] != "system":
        return [system, *turns]
    if not same_turns(turns[:1], [system]):
        raise BadRow(f"column {name!r} contradicts the system turn of the prompt")
    return turns


def _is_nothing(value: object) -> bool:
    return is_empty(value) or (isinstance(value, str) and value.strip() in NOTHING)


def _history(value: object) -> list[Message]:
    """Returns earlier turns: messages, or as LLaMA-Factory has them pairs of question and reply."""
    if _is_nothing(value):
        return []
    if not isinstance(value, list):
        raise BadRow("column 'history' is no list of turns")
    entries = cast("list[object]", value)
    if all(isinstance(entry, dict) for entry in entries):
        return as_messages(entries)
    turns: list[Message] = []
    for entry in entries:
        texts = cast("list[object]", entry) if isinstance(entry, list) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise BadRow("column 'history' is no list of pairs of texts")
        for role, text in zip(("user", "assistant"), texts, strict=True):
            turns.append({"role": role, "content": cast("str", text)})
    return turns


def join_prompts(prompt: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """Returns the prompt that a column states, with what a dialogue states in front of its reply.

    Either may be a part of the other: the beginning of it, or its end; or the dialogue goes on
    where the prompt ends, with an assistant's turn or behind one.

    Raises:
        BadRow: they contradict each other.
    """
    longer, shorter = sorted((list(prompt), list(before)), key=len, reverse=True)
    size = len(shorter)
    if same_turns(longer[:size], shorter) or same_turns(longer[len(longer) - size :], shorter):
        return longer
    is_reply = before[0]["role"] == "assistant"
    if is_reply != (prompt[-1]["role"] == "assistant") and before[0]["role"] != "system":
        return [*prompt, *before]
    raise BadRow("the prompt contradicts what stands in front of a response")


def same_turns(turns: Sequence[Message], others: Sequence[Message]) -> bool:
    """Returns whether turns are the same but for white space."""
    return turns == others or list(map(_compared, turns)) == list(map(_compared, others))


def _compared(turn: Message) -> tuple[str, str, str]:
    return turn["role"], " ".join(turn["content"].split()), turn.get("name", "")
