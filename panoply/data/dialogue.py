"""Prompt and responses of a row, from the columns that data sets keep them in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from panoply.data.parse import as_dialogue, as_messages
from panoply.data.prompts import NOT_RENDERED, SYSTEM, join_prompts, same_turns, with_context
from panoply.data.quarantine import BadRow
from panoply.data.rows import RawPair, Row
from panoply.data.schema import Message
from panoply.wire.conversation import is_empty

ROW_COLUMNS = frozenset(
    (*("source", "subset", "domain", "group", "weight"), "history", *SYSTEM, *NOT_RENDERED)
)
"""Columns that every layout of pairs reads beside prompt and responses."""


@dataclass(frozen=True)
class PromptColumn:
    """Reader of the prompt of a file's rows, without what stands in `system` and `history`."""

    name: str
    read: Callable[[Row], list[Message]]


def _from_column(row: Row, name: str) -> list[Message]:
    return as_messages(row.get(name))


def _from_question(row: Row) -> list[Message]:
    """Returns a question, which in WebGPT's rows is a record with its full text."""
    question = row.get("question")
    if isinstance(question, Mapping):
        question = cast("Mapping[str, object]", question).get("full_text")
    return as_messages(question)


def _from_instruction(row: Row) -> list[Message]:
    """Joins Alpaca's instruction and, where there is one, its input."""
    instruction, added = row.get("instruction"), row.get("input")
    if is_empty(added):
        return as_messages(instruction)
    if is_empty(instruction):
        return as_messages(added)
    if not (isinstance(instruction, str) and isinstance(added, str)):
        raise BadRow("'instruction' and 'input' are not both texts")
    return as_messages(f"{instruction}\n\n{added}")


NAMES = (
    *("context", "context_messages", "input", "query", "problem"),
    *("conversations", "conversation", "messages"),
)
PROMPTS: tuple[PromptColumn, ...] = (
    PromptColumn("prompt", partial(_from_column, name="prompt")),
    PromptColumn("question", _from_question),
    PromptColumn("instruction", _from_instruction),
    *(PromptColumn(name, partial(_from_column, name=name)) for name in NAMES),
)
"""Columns that may hold a prompt, with their readers; the first one that a file has counts."""


def prompt_column(columns: Collection[str]) -> PromptColumn | None:
    """Returns the reader of the prompt in a file with these columns; None where there is none."""
    return next((column for column in PROMPTS if column.name in columns), None)


def take_reply(prompt: Sequence[Message] | None, value: object) -> tuple[list[Message], object]:
    """Splits the value of a response's column into the prompt and the reply.

    The value is the reply alone, or a dialogue (text or messages) with or without the prompt;
    where there is no prompt column (None), it has to be a dialogue.

    Raises:
        BadRow: a dialogue does not end in an assistant turn, or contradicts the prompt.
    """
    messages = as_dialogue(value)
    if messages is None and prompt is not None:
        return list(prompt), value
    if messages is None and isinstance(value, str):
        raise BadRow(
            "not a Human/Assistant dialogue, and no column is known to hold the prompt: name it "
            "with --columns prompt=COLUMN"
        )
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("dialogue does not end in an assistant turn")
    *before, last = messages
    return join_prompts(prompt or [], before), last["content"]


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
    before_chosen, better = take_reply(prompt, chosen)
    before_rejected, worse = take_reply(prompt, rejected)
    if not same_turns(before_chosen, before_rejected):
        raise BadRow("chosen and rejected do not share a prompt")
    return RawPair(
        with_context(row, before_chosen),
        better,
        worse,
        source=row.get("source"),
        subset=row.get("subset", row.get("domain")),
        group=row.get("group"),
        margin=margin,
        weight=row.get("weight"),
        is_tie=is_tie,
    )
