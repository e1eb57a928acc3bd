"""Several responses to a prompt, with verdicts, ranks or scores, as pairs.

The rule: every response is paired with each one that is ranked below it (all comparisons, as in
InstructGPT, arXiv 2203.02155, section 3.4). Responses that are ranked alike give a tie, which is
counted and left out. A difference of scores is the pair's margin; ranks give none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import cast

from panoply.data.dialogue import ROW_COLUMNS, PromptColumn, pair_of, prompt_column
from panoply.data.message_trees import TREE_COLUMNS
from panoply.data.parse import number
from panoply.data.quarantine import BadRow
from panoply.data.rows import FileLayout, RawPair, Row
from panoply.data.schema import Message

# Lists of responses

LISTS = ("completions", "answers", "responses", "candidates", "generations", "outputs")
"""Columns that hold several responses."""
TEXTS = ("response", "answer", "completion", "text", "content", "output")
"""Keys of a response's text, where the list holds records."""
SCORES = ("overall_score", "score", "rating", "reward", "scores", "ratings", "rewards")
"""Scores, of a record or as a column of as many numbers as responses: the higher, the better."""
RANKS = ("rank", "ranks", "ranking")
"""Ranks, likewise: the lower, the better."""


def list_layout(columns: Collection[str]) -> FileLayout[RawPair] | None:
    """Recognizes a layout of a list of responses; None where there is none."""
    names = [name for name in LISTS if name in columns]
    orders = [name for name in (*RANKS, *SCORES) if name in columns]
    prompt = prompt_column(columns)
    if prompt is None:
        return None
    if {"instruction", "output"} <= set(columns) and not names:
        adapt = partial(_listed, prompt=prompt, column="output", order="")
        reads = ROW_COLUMNS | {"instruction", "input", "output"}
        return FileLayout("ranking: the better output first", adapt, reads, has_source=True)
    if not names:
        return None
    adapt = partial(_listed, prompt=prompt, column=names[0], order=orders[0] if orders else None)
    reads = ROW_COLUMNS | {prompt.name, names[0], *orders[:1]}
    return FileLayout("ranked responses", adapt, reads, has_source=True)


def _listed(row: Row, prompt: PromptColumn, column: str, order: str | None) -> list[RawPair]:
    """Returns the pairs of a list of responses.

    Args:
        row: a row of the file.
        prompt: reader of the prompt.
        column: the list of responses, texts or records.
        order: column of as many ranks or scores; empty: the list itself is the ranking; None: each
            record has its rank or score.
    """
    responses = row.get(column)
    if not isinstance(responses, list) or len(cast("list[object]", responses)) < 2:
        raise BadRow(f"{column!r} is no list of two responses or more")
    responses = cast("list[object]", responses)
    if order is None:
        ordered = [_response_and_merit(response) for response in responses]
    else:
        merits = range(len(responses), 0, -1) if order == "" else _merits(row.get(order), order)
        if len(merits) != len(responses):
            raise BadRow(f"{order!r} has not as many numbers as {column!r} responses")
        ordered = list(zip(map(_text_of, responses), merits, strict=True))
    is_scored = order in SCORES or (order is None and not _is_ranked(responses))
    return ranked_pairs(row, prompt.read(row), ordered, has_margin=is_scored)


def _is_ranked(responses: Sequence[object]) -> bool:
    return any(isinstance(r, Mapping) and r.get("rank") is not None for r in responses)


def _text_of(response: object) -> object:
    """Returns a response's text, or its turns, from a record; a text as it is."""
    if not isinstance(response, Mapping):
        return response
    record = cast("Mapping[str, object]", response)
    name = next((name for name in TEXTS if name in record), None)
    if name is None:
        raise BadRow(f"a response has none of {', '.join(TEXTS)}")
    return record[name]


def _response_and_merit(response: object) -> tuple[object, float | None]:
    if not isinstance(response, Mapping):
        raise BadRow("a response has neither rank nor score")
    record = cast("Mapping[str, object]", response)
    order = next((name for name in (*RANKS, *SCORES) if record.get(name) is not None), None)
    merit = number(record[order]) if order else None
    if merit is not None and order in RANKS:
        merit = -merit
    return _text_of(record), merit


def _merits(values: object, order: str) -> list[float | None]:
    if not isinstance(values, list):
        raise BadRow(f"{order!r} is no list of numbers")
    merits = [number(value) for value in cast("list[object]", values)]
    return [None if m is None else -m for m in merits] if order in RANKS else merits


def ranked_pairs(
    row: Row,
    prompt: Sequence[Message],
    responses: Sequence[tuple[object, float | None]],
    *,
    has_margin: bool,
) -> list[RawPair]:
    """Returns all pairs of responses to a prompt, the better one chosen; those alike are ties.

    Args:
        row: the row of the file, for its source and group.
        prompt: the prompt of all.
        responses: each with its merit, the higher the better; None is left out.
        has_margin: whether the difference of merits is a margin.
    """
    rated = [(text, merit) for text, merit in responses if merit is not None]
    pairs: list[RawPair] = []
    for (text, merit), (other, other_merit) in combinations(rated, 2):
        gap = merit - other_merit
        chosen, rejected = (text, other) if gap >= 0 else (other, text)
        margin = abs(gap) if has_margin and math.isfinite(gap) else None
        pairs.append(pair_of(row, prompt, chosen, rejected, margin, is_tie=gap == 0))
    if not pairs:
        raise BadRow("fewer than two responses have a rank or score")
    return pairs


# Trees


def tree_layout(columns: Collection[str]) -> FileLayout[RawPair] | None:
    """Recognizes OASST's trees of messages and their ranked replies; None where there are none."""
    if set(TREE_COLUMNS) <= set(columns):
        reads = frozenset((*TREE_COLUMNS, "lang"))
        return FileLayout("OASST trees", _tree, reads)
    return None


def _tree(row: Row) -> list[RawPair]:
    root = row.get("prompt")
    if not isinstance(root, Mapping):
        raise BadRow("the tree has no prompt")
    pairs: list[RawPair] = []
    # All of a tree falls into one part: its branches share their first turns.
    context = {"group": row.get("message_tree_id"), "subset": root.get("lang")}
    branches: list[tuple[list[Message], Mapping[str, object]]] = [([], root)]
    while branches:
        before, node = branches.pop()
        turns = [*before, _node_turn(node)]
        replies = cast("list[Mapping[str, object]]", node.get("replies") or [])
        branches += ((turns, reply) for reply in reversed(replies))
        ranked = [(reply.get("text"), number(reply.get("rank"))) for reply in replies]
        merits = [(text, None if rank is None else -rank) for text, rank in ranked]
        num_ranked = sum(merit is not None for _, merit in merits)
        if turns[-1]["role"] == "user" and num_ranked > 1:
            pairs += ranked_pairs(context, turns, merits, has_margin=False)
    if not pairs:
        raise BadRow("no message of the tree has two ranked replies")
    return pairs


def _node_turn(node: Mapping[str, object]) -> Message:
    roles = {"prompter": "user", "assistant": "assistant"}
    if node.get("role") not in roles:
        raise BadRow("unknown role")
    return {"role": roles[str(node["role"])], "content": cast("str", node.get("text"))}
