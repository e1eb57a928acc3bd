"""Layouts of published data sets, recognized by column names, with their rating scales.

A layout's adapter is a pure function from one row of a file to *raw* rows, whose values are in
place but not yet checked. A row that has not the layout's structure raises `BadRow`, which
quarantines it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import product
from typing import cast

from panoply.data.compared import TWO_RESPONSES, two_responses_layout
from panoply.data.dialogue import (
    ROW_COLUMNS,
    PromptColumn,
    pair_of,
    prompt_column,
    take_reply,
)
from panoply.data.objectives import is_rating
from panoply.data.parse import as_dialogue, as_messages, number
from panoply.data.prompts import same_turns, with_context
from panoply.data.quarantine import BadRow
from panoply.data.ranked import list_layout, tree_layout
from panoply.data.ratings import RatingMap
from panoply.data.rows import FileLayout, RawPair, RawPrompt, RawRating, Row
from panoply.data.schema import Message
from panoply.wire.conversation import is_null

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALES = {name: RatingMap(0, 4, bin_centers=True) for name in HELPSTEER}
BEAVERTAILS_SCALES = {"is_safe": RatingMap(0, 1)}
ULTRAFEEDBACK = ("instruction_following", "truthfulness", "honesty", "helpfulness")
ULTRAFEEDBACK_SCALES = {
    **{name: RatingMap(1, 5) for name in ULTRAFEEDBACK},
    "overall_score": RatingMap(1, 10),
}

# Pairs

SCORED_PAIRS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Columns of the scores of both responses, whose difference is the margin where there is none."""
PAIR_LAYOUTS = (
    *(f"{name}, chosen, rejected" for name in ("prompt", "question", "instruction", "input")),
    "chosen, rejected (both repeat the prompt: messages, or Human/Assistant text as in HH-RLHF)",
    "messages, rejected_response (ms-swift)",
    "a prompt and responses with ranks or scores (Nectar, UltraFeedback, NeMo-RL, OASST's trees)",
    f"two responses and a verdict ({', '.join(layout.name for layout in TWO_RESPONSES)})",
)
RATING_LAYOUTS = (
    "prompt, response and a numeric column per attribute (also HelpSteer, BeaverTails)",
    "prompt, completion, label (TRL's unpaired preferences)",
    "instruction, completions (UltraFeedback)",
)
PROMPT_LAYOUTS = ("a prompt (columns prompt, question, problem, instruction, input or messages)",)


def pair_layout(columns: Collection[str]) -> FileLayout[RawPair]:
    """Recognizes the layout of a file of pairs.

    Raises:
        ValueError: the columns are of no known layout.
    """
    layout = (
        _chosen_rejected(columns)
        or _swift(columns)
        or two_responses_layout(columns)
        or tree_layout(columns)
        or list_layout(columns)
    )
    if layout is None:
        raise _unknown("pairs", columns, PAIR_LAYOUTS)
    return layout


def _chosen_rejected(columns: Collection[str]) -> FileLayout[RawPair] | None:
    if not {"chosen", "rejected"} <= set(columns):
        return None
    prompt = prompt_column(columns)
    margins = {"margin"}.union(*(pair for pair in SCORED_PAIRS if set(pair) <= set(columns)))
    reads = _reads(prompt, "chosen", "rejected", *margins)
    name = f"{prompt.name}, chosen, rejected" if prompt else "chosen, rejected with the prompt"
    return FileLayout(name, partial(_pairs, prompt=prompt), reads, has_source=True)


def _reads(prompt: PromptColumn | None, *columns: str) -> frozenset[str]:
    of_prompt = () if prompt is None else (prompt.name,)
    also = ("input",) if of_prompt == ("instruction",) else ()
    return ROW_COLUMNS.union(of_prompt, also, columns)


def _pairs(row: Row, prompt: PromptColumn | None) -> list[RawPair]:
    """Returns the pair of a row, or of lists of texts all of one with one (RM-Bench)."""
    turns = _without_chosen(prompt.read(row), row.get("chosen")) if prompt else None
    pairs = product(_alternatives(row.get("chosen")), _alternatives(row.get("rejected")))
    margin = _margin(row)
    return [pair_of(row, turns, chosen, rejected, margin) for chosen, rejected in pairs]


def _without_chosen(turns: list[Message], chosen: object) -> list[Message]:
    """Returns a prompt's turns without the chosen reply, where they are that whole dialogue."""
    if not turns or turns[-1]["role"] != "assistant":
        return turns
    dialogue = as_dialogue(chosen)
    return turns[:-1] if dialogue and same_turns(dialogue, turns) else turns


def _alternatives(value: object) -> list[object]:
    texts = cast("list[object]", value) if isinstance(value, list) else []
    if texts and all(text is None or isinstance(text, str) for text in texts):
        return texts
    return [value]


def _margin(row: Row) -> object:
    if row.get("margin") is not None:
        return row["margin"]
    for of_chosen, of_rejected in SCORED_PAIRS:
        if of_chosen in row and of_rejected in row:
            better, worse = number(row[of_chosen]), number(row[of_rejected])
            return None if better is None or worse is None else better - worse
    return None


def _swift(columns: Collection[str]) -> FileLayout[RawPair] | None:
    """Recognizes ms-swift's rankings: the chosen reply ends the messages (or is `response`)."""
    names = set(columns)
    worse = next((n for n in ("rejected_messages", "rejected_response") if n in names), None)
    if worse is None:
        return None
    prompt = prompt_column(columns)
    better = "messages" if "messages" in names else "response"
    if better not in names or (better == "response" and prompt is None):
        return None
    prompt = prompt if better == "response" else None
    adapt = partial(_swift_pair, prompt=prompt, worse=worse)
    reads = _reads(prompt, better, worse, "margin")
    return FileLayout("ms-swift ranking", adapt, reads, has_source=True)


def _swift_pair(row: Row, prompt: PromptColumn | None, worse: str) -> list[RawPair]:
    rejected = row.get(worse)
    if prompt is not None:
        return [pair_of(row, prompt.read(row), row.get("response"), rejected, row.get("margin"))]
    if not isinstance(rejected, list):
        before, _ = take_reply(None, row.get("messages"))
        rejected = [*before, {"role": "assistant", "content": rejected}]
    return [pair_of(row, None, row.get("messages"), rejected, row.get("margin"))]


# Ratings


def _rating(
    row: Row, prompt: PromptColumn | None, response: str, attributes: Sequence[str]
) -> list[RawRating]:
    before, reply = take_reply(prompt.read(row) if prompt else None, row.get(response))
    return [
        RawRating(
            with_context(row, before),
            reply,
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
    ratings = {name: _annotated(annotations, name) for name in ULTRAFEEDBACK}
    ratings["overall_score"] = completion.get("overall_score")
    return RawRating(prompt, completion.get("response"), ratings, subset=row.get("source"))


def _annotated(annotations: object, name: str) -> object:
    """Returns a rating; a list, which no rating is, where the annotations are no records."""
    for key in (name, "Rating"):
        if not annotations:
            return None
        if not isinstance(annotations, Mapping):
            return [annotations]
        annotations = annotations.get(key)
    return annotations


def rating_layout(
    columns: Mapping[str, bool], attributes: Sequence[str] = ()
) -> FileLayout[RawRating]:
    """Recognizes the layout of a file of ratings.

    Args:
        columns: whether the column holds numbers, by name.
        attributes: columns that are ratings; empty: all that hold numbers and are not known to
            be others.

    Raises:
        ValueError: the columns are of no known layout, or a rating is none of them.
    """
    if {"instruction", "completions"} <= set(columns):
        rated_columns = tuple(ULTRAFEEDBACK_SCALES)
        reads = frozenset(("instruction", "completions", "source"))
        return FileLayout(
            "UltraFeedback", _ultrafeedback, reads, rated_columns, ULTRAFEEDBACK_SCALES
        )
    prompt = prompt_column(columns)
    response = next((name for name in ("response", "completion") if name in columns), "messages")
    fixed = _reads(prompt, response)
    numeric = [name for name, is_number in columns.items() if is_number and name not in fixed]
    rated = tuple(filter(is_rating, numeric))
    if unknown := [name for name in attributes if name not in columns]:
        raise ValueError(
            f"{unknown} are to be ratings (--rating-columns), but no columns; columns are "
            f"{sorted(columns)}"
        )
    rated = tuple(attributes) or rated
    is_dialogue = response == "messages"
    if prompt is None or response not in columns or not rated:
        raise _unknown("ratings", columns, RATING_LAYOUTS)
    name, scales = (
        f"{'' if is_dialogue else f'{prompt.name}, '}{response}, ratings",
        cast("Mapping[str, RatingMap]", {}),
    )
    if set(HELPSTEER) <= set(rated):
        name, scales = "HelpSteer", HELPSTEER_SCALES
    elif {"is_safe", "category"} <= set(columns):
        name, scales = "BeaverTails", BEAVERTAILS_SCALES
    adapt = partial(
        _rating, prompt=None if is_dialogue else prompt, response=response, attributes=rated
    )
    return FileLayout(name, adapt, fixed.union(rated), rated, scales, has_source=True)


# Prompts


def prompt_layout(columns: Collection[str]) -> FileLayout[RawPrompt]:
    """Recognizes the layout of a file of prompts for a policy.

    Raises:
        ValueError: the columns are of no known layout.
    """
    names = set(columns)
    prompt = prompt_column(columns)
    if prompt is None:
        raise _unknown("prompts", columns, PROMPT_LAYOUTS)
    label = next((n for n in ("label", "answer", "ground_truth", "solution") if n in names), None)
    source = next((n for n in ("source", "data_source") if n in names), None)
    name = "verl" if "reward_model" in names else f"{prompt.name}, {label or 'no label'}"
    adapt = partial(_prompt, prompt=prompt, label_column=label, source=source)
    read = [column for column in ("reward_model", label, source) if column]
    return FileLayout(name, adapt, _reads(prompt, *read))


def _prompt(
    row: Row, prompt: PromptColumn, label_column: str | None, source: str | None
) -> list[RawPrompt]:
    graded = row.get("reward_model")
    truth = row.get(label_column) if label_column else None
    if isinstance(graded, Mapping):
        truth = graded.get("ground_truth")
    origin = row.get(source) if source else None
    label = None if is_null(truth) else truth
    return [RawPrompt(with_context(row, prompt.read(row)), label, origin)]


def _unknown(kind: str, columns: Collection[str], layouts: Sequence[str]) -> ValueError:
    advice = {
        "pairs": "which column is which, as in --columns prompt=post,chosen=better,rejected=worse",
        "ratings": "which columns are ratings, and which column is which, as in --rating-columns "
        "tone,quality,prompt=post,response=output",
        "prompts": "which column is the prompt, as in --prompts.columns prompt=post (--columns of "
        "jobs.inspect)",
    }
    return ValueError(
        f"unknown layout for {kind}: columns {sorted(columns)}; known layouts: "
        f"{'; '.join(layouts)}. Where names differ, say {advice[kind]}; docs/data.md has a row of "
        "each layout"
    )
