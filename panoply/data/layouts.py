"""Row layouts of published data sets, recognized by column names, with their rating scales.

An adapter is a pure function from one row of a file to *raw* rows, whose values are in place but
not yet checked. A row that has not the layout's structure raises `BadRow`, which quarantines it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from panoply.data.objectives import is_rating
from panoply.data.parse import as_dialogue, as_messages, number
from panoply.data.prompts import join_prompts, same_turns, with_context
from panoply.data.quarantine import BadRow
from panoply.data.ratings import RatingMap
from panoply.data.schema import Message

Row: TypeAlias = Mapping[str, object]

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALES = {name: RatingMap(0, 4, bin_centers=True) for name in HELPSTEER}
BEAVERTAILS_SCALES = {"is_safe": RatingMap(0, 1)}
ULTRAFEEDBACK = ("instruction_following", "truthfulness", "honesty", "helpfulness")
ULTRAFEEDBACK_SCALES = {
    **{name: RatingMap(1, 5) for name in ULTRAFEEDBACK},
    "overall_score": RatingMap(1, 10),
}


@dataclass(frozen=True)
class RawPair:
    """A pair as it stands in a file, unchecked."""

    prompt: Sequence[Message]
    chosen: object
    rejected: object
    source: object = None
    subset: object = None
    group: object = None
    margin: object = None
    weight: object = None


@dataclass(frozen=True)
class RawRating:
    """A rating as it stands in a file, unchecked; `ratings` by attribute, in the raw scale."""

    prompt: Sequence[Message]
    response: object
    ratings: Mapping[str, object]
    source: object = None
    subset: object = None
    group: object = None


Raw = TypeVar("Raw", RawPair, RawRating)


@dataclass(frozen=True)
class FileLayout(Generic[Raw]):
    """A recognized layout, bound to the columns of one file."""

    adapt: Callable[[Row], list[Raw]]
    attributes: tuple[str, ...] = ()
    """Names of the ratings, as the file spells them; empty for pairs."""
    scales: Mapping[str, RatingMap] = field(default_factory=dict[str, RatingMap])
    """Published scales by attribute; the others are inferred from the data."""
    has_source: bool = False
    """Whether the rows' `source` column may name their data set."""


# Pairs


def _take_reply(prompt: list[Message] | None, value: object) -> tuple[list[Message], object]:
    """Splits the value of a `chosen` or `rejected` column into the prompt and the reply.

    The value is the reply alone, or a dialogue (text or messages) with or without the prompt;
    where there is no prompt column (None), it has to be a dialogue.
    """
    messages = as_dialogue(value)
    if messages is None and prompt is not None:
        return prompt, value
    if messages is None and isinstance(value, str):
        raise BadRow("not a Human/Assistant dialogue")
    if not messages or not _is_reply(messages[-1]):
        raise BadRow("dialogue does not end in an assistant turn")
    *before, last = messages
    return join_prompts(prompt or [], before), last["content"]


def _is_reply(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def _pair(row: Row, prompt_of: Callable[[Row], list[Message] | None]) -> list[RawPair]:
    prompt = prompt_of(row)
    before_chosen, chosen = _take_reply(prompt, row.get("chosen"))
    before_rejected, rejected = _take_reply(prompt, row.get("rejected"))
    if not same_turns(before_chosen, before_rejected):
        raise BadRow("chosen and rejected do not share a prompt")
    shared = with_context(row, before_chosen)
    margin = row.get("margin")
    if margin is None and "score_chosen" in row and "score_rejected" in row:
        better, worse = number(row["score_chosen"]), number(row["score_rejected"])
        margin = None if better is None or worse is None else better - worse
    return [
        RawPair(
            shared,
            chosen,
            rejected,
            source=row.get("source"),
            subset=row.get("subset"),
            group=row.get("group"),
            margin=margin,
            weight=row.get("weight"),
        )
    ]


def _instruction(row: Row) -> list[Message]:
    """Joins Alpaca's instruction and, where there is one, its input."""
    parts = [str(row[name]) for name in ("instruction", "input") if row.get(name)]
    return as_messages("\n\n".join(parts))


def _column_prompt(row: Row, column: str) -> list[Message]:
    return as_messages(row.get(column))


PAIR_PROMPTS: tuple[tuple[str, Callable[[Row], list[Message]]], ...] = (
    ("prompt", partial(_column_prompt, column="prompt")),
    ("question", partial(_column_prompt, column="question")),
    ("instruction", _instruction),
    ("input", partial(_column_prompt, column="input")),
)
"""Columns that may hold a pair's prompt, the first present one counts, with their readers."""

PAIR_LAYOUTS = (
    *(f"{column}, chosen, rejected" for column, _ in PAIR_PROMPTS),
    "chosen, rejected (both repeat the prompt: messages, or Human/Assistant text as in HH-RLHF)",
)
RATING_LAYOUTS = (
    "prompt, response and a numeric column per attribute (also HelpSteer, BeaverTails)",
    "instruction, completions (UltraFeedback)",
)


def pair_layout(columns: Collection[str]) -> FileLayout[RawPair]:
    """Recognizes the layout of a file of pairs.

    Raises:
        ValueError: the columns are of no known layout.
    """
    if {"chosen", "rejected"} <= set(columns):
        for column, prompt_of in PAIR_PROMPTS:
            if column in columns:
                return FileLayout(partial(_pair, prompt_of=prompt_of), has_source=True)
        return FileLayout(partial(_pair, prompt_of=lambda _: None), has_source=True)
    raise _unknown("pairs", columns, PAIR_LAYOUTS)


# Ratings


def _rating(row: Row, attributes: Sequence[str]) -> list[RawRating]:
    return [
        RawRating(
            with_context(row, as_messages(row.get("prompt"))),
            row.get("response"),
            {name: row.get(name) for name in attributes},
            source=row.get("source"),
            subset=row.get("subset"),
            group=row.get("group"),
        )
    ]


def _ultrafeedback(row: Row) -> list[RawRating]:
    """Returns one rating per completion; the `source` column, the prompt's origin, is a subset."""
    completions = row.get("completions")
    if not isinstance(completions, list) or not completions:
        raise BadRow("no completions")
    prompt = as_messages(row.get("instruction"))
    return [_completion(row, prompt, completion) for completion in completions]


def _completion(row: Row, prompt: list[Message], completion: object) -> RawRating:
    if not isinstance(completion, Mapping):
        raise BadRow("completion is no record")
    annotations = completion.get("annotations") or {}
    if not (isinstance(annotations, Mapping) and all(map(_is_record, annotations.values()))):
        raise BadRow("annotations are no records")
    ratings: dict[str, object] = {
        name: (annotations.get(name) or {}).get("Rating") for name in ULTRAFEEDBACK
    }
    ratings["overall_score"] = completion.get("overall_score")
    return RawRating(prompt, completion.get("response"), ratings, subset=row.get("source"))


def _is_record(value: object) -> bool:
    return value is None or isinstance(value, Mapping)


def rating_layout(columns: Mapping[str, bool]) -> FileLayout[RawRating]:
    """Recognizes the layout of a file of ratings.

    Args:
        columns: whether the column holds numbers, by name.

    Raises:
        ValueError: the columns are of no known layout.
    """
    if {"instruction", "completions"} <= set(columns):
        attributes = tuple(ULTRAFEEDBACK_SCALES)
        return FileLayout(_ultrafeedback, attributes, ULTRAFEEDBACK_SCALES)
    attributes = tuple(n for n, numeric in columns.items() if numeric and is_rating(n))
    if not ({"prompt", "response"} <= set(columns) and attributes):
        raise _unknown("ratings", columns, RATING_LAYOUTS)
    scales: Mapping[str, RatingMap] = {}
    if set(HELPSTEER) <= set(attributes):
        scales = HELPSTEER_SCALES
    elif {"is_safe", "category"} <= set(columns):
        scales = BEAVERTAILS_SCALES
    adapt = partial(_rating, attributes=attributes)
    return FileLayout(adapt, attributes, scales, has_source=True)


def _unknown(kind: str, columns: Collection[str], layouts: Sequence[str]) -> ValueError:
    return ValueError(
        f"unknown layout for {kind}: columns {sorted(columns)}; known layouts: "
        f"{'; '.join(layouts)}. Rename the columns to one of these"
    )
