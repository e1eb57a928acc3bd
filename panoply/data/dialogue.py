"""Prompt and reply of a row, from the columns that data sets keep them in.

What belongs to a conversation and cannot be rendered (tools, images) is a reason for quarantine: no
part of a conversation is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from panoply.data.parse import HUMAN, BadRow, as_messages, parse_dialogue
from panoply.data.rows import RawPair, Row
from panoply.data.schema import Message

CONTEXT = ("system", "history")
"""Columns whose turns stand before the prompt's."""
NOT_RENDERED = ("tools", "functions", "images", "image", "videos", "audios")
"""Columns of a conversation that no template here renders; a row that fills one is quarantined."""
EMPTY = ("", "[]", "{}", "null", "None")
"""Texts that stand for an empty column in CSV files."""
ROW_COLUMNS = ("source", "subset", "domain", "group", "weight")
"""Columns that every layout of pairs reads beside prompt and responses."""
SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    **{"system": "system", "observation": "tool", "tool": "tool"},
}
"""Roles by the names of speakers in ShareGPT's files and OASST's trees."""


@dataclass(frozen=True)
class PromptColumn:
    """Reader of the prompt of a file's rows."""

    name: str
    read: Callable[[Row], list[Message]]
    reads: frozenset[str]
    """Columns that it reads."""


def _from_column(row: Row, name: str) -> list[Message]:
    return with_context(row, as_turns(row.get(name)))


def _from_instruction(row: Row) -> list[Message]:
    """Joins Alpaca's instruction and, where there is one, its input."""
    parts = [str(row[name]) for name in ("instruction", "input") if row.get(name)]
    return with_context(row, as_messages("\n\n".join(parts)))


def _from_full_text(row: Row) -> list[Message]:
    """Returns WebGPT's question, a record, as a prompt."""
    question = row.get("question")
    text = question.get("full_text") if isinstance(question, Mapping) else question
    return with_context(row, as_turns(text))


PROMPTS: tuple[tuple[str, Callable[[Row], list[Message]]], ...] = (
    ("prompt", partial(_from_column, name="prompt")),
    ("question", _from_full_text),
    ("instruction", _from_instruction),
    ("context", partial(_from_column, name="context")),
    ("context_messages", partial(_from_column, name="context_messages")),
    ("input", partial(_from_column, name="input")),
    ("query", partial(_from_column, name="query")),
    ("problem", partial(_from_column, name="problem")),
    ("conversations", partial(_from_column, name="conversations")),
    ("messages", partial(_from_column, name="messages")),
)
"""Columns that may hold a prompt, with their readers; the first one that a file has counts."""


def prompt_column(columns: Collection[str]) -> PromptColumn | None:
    """Returns the reader of the prompt in a file with these columns; None where there is none."""
    for name, read in PROMPTS:
        if name in columns:
            reads = {name, *CONTEXT, *NOT_RENDERED}
            if name == "instruction":
                reads.add("input")
            return PromptColumn(name, read, frozenset(reads))
    return None


def as_turns(value: object) -> list[Message]:
    """Returns a text, or a list of turns in our spelling or ShareGPT's, as messages.

    Raises:
        BadRow: a text cannot be taken apart, or a speaker is unknown.
    """
    messages = as_messages(value)
    return [_spelled_as_message(message) for message in messages]


def _spelled_as_message(message: Message) -> Message:
    if not (isinstance(message, Mapping) and {"from", "value"} <= message.keys()):  # pyright: ignore[reportUnnecessaryIsInstance]  # rows are unchecked
        return message
    role = SPEAKERS.get(message["from"])
    if role is None:
        raise BadRow("unknown speaker")
    return {"role": role, "content": message["value"]}


def with_context(row: Row, messages: list[Message]) -> list[Message]:
    """Returns a prompt behind the turns of the row's `history` and `system` columns.

    Raises:
        BadRow: a column holds what cannot be rendered, or contradicts the prompt.
    """
    for name in NOT_RENDERED:
        value = row.get(name)
        if value is not None and value not in EMPTY and value not in ([], {}):
            raise BadRow(f"column {name!r} is not empty, and nothing renders it")
    history = _history(row.get("history")) if "history" in row else []
    turns = [*history, *messages]
    system = row.get("system")
    if system is None or not str(system).strip() or not messages:
        return turns
    turn: Message = {"role": "system", "content": str(system)}
    if not _has_role(turns[0], "system"):
        return [turn, *turns]
    if not same_turns(turns[:1], [turn]):
        raise BadRow("column 'system' differs from the prompt's own system turn")
    return turns


def _history(value: object) -> list[Message]:
    """Returns earlier turns: pairs of a user's text and a reply (LLaMA-Factory), or messages."""
    if value is None or value in EMPTY:
        return []
    if not isinstance(value, list):
        raise BadRow("column 'history' is no list of turns")
    turns: list[Message] = []
    for entry in cast("list[object]", value):
        if isinstance(entry, list) and len(cast("list[object]", entry)) == 2:
            asked, answer = cast("list[str]", entry)
            turns += ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
        elif isinstance(entry, Mapping):
            turns.append(_spelled_as_message(cast("Message", entry)))
        else:
            raise BadRow("column 'history' is no list of turns")
    return turns


def take_reply(
    row: Row, prompt: Sequence[Message] | None, value: object
) -> tuple[list[Message], object]:
    """Splits a response column's value into the prompt and the reply.

    The value is the reply alone, or a dialogue (text or turns) with or without the prompt; where
    there is no prompt column (None), it has to be a dialogue.

    Raises:
        BadRow: a dialogue does not end in an assistant turn.
    """
    if isinstance(value, Mapping):  # one turn, as in ShareGPT's ranking
        value = [cast("object", value)]
    if not isinstance(value, list):
        if prompt is not None and not (isinstance(value, str) and value.startswith(HUMAN)):
            return list(prompt), value
        value = parse_dialogue(value) if isinstance(value, str) else []
    messages = as_turns(cast("list[object]", value))
    last = messages[-1] if messages else None
    if last is None or not _has_role(last, "assistant"):
        raise BadRow("dialogue does not end in an assistant turn")
    before = messages[:-1]
    if not before or _has_role(before[0], "assistant"):
        return [*(prompt or []), *before], last.get("content")
    if prompt is None:
        return with_context(row, before), last.get("content")
    return _one_of(prompt, before), last.get("content")


def _one_of(prompt: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """Returns the prompt that a column and a dialogue both state, the longer of the two.

    Raises:
        BadRow: neither is a part of the other.
    """
    longer, shorter = sorted((list(prompt), list(before)), key=len, reverse=True)
    for start in range(len(longer) - len(shorter) + 1):
        if same_turns(longer[start : start + len(shorter)], shorter):
            return longer
    raise BadRow("the prompt's column contradicts the prompt in the response's dialogue")


def same_turns(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Returns whether turns are the same but for keys without a value and white space around."""
    return [_stripped(turn) for turn in some] == [_stripped(turn) for turn in others]


def _stripped(message: object) -> object:
    if not isinstance(message, Mapping):
        return message
    turn = cast("Mapping[str, object]", message)
    filled = {key: value for key, value in turn.items() if value is not None}
    return {k: value.strip() if isinstance(value, str) else value for k, value in filled.items()}


def _has_role(message: object, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role


def pair_of(
    row: Row,
    prompt: Sequence[Message] | None,
    chosen: object,
    rejected: object,
    margin: object = None,
    *,
    is_tie: bool = False,
) -> RawPair:
    """Returns a pair of two responses, each a text or a dialogue, with the row's other columns.

    Raises:
        BadRow: they do not answer the same prompt.
    """
    before_chosen, better = take_reply(row, prompt, chosen)
    before_rejected, worse = take_reply(row, prompt, rejected)
    if not same_turns(before_chosen, before_rejected):
        raise BadRow("chosen and rejected do not share a prompt")
    return RawPair(
        before_chosen,
        better,
        worse,
        source=row.get("source"),
        subset=row.get("subset", row.get("domain")),
        group=row.get("group"),
        margin=margin,
        weight=row.get("weight"),
        is_tie=is_tie,
    )
