"""RMB (arXiv 2410.09893): pairs, and lists of which the best response has to beat every other.

    pair   = 1[R(x, chosen) > R(x, rejected)]             a tie is lost
    list   = 1[R(x, best) > max of the others]
    board  = mean of the four of helpfulness and harmlessness, pairs and lists

Pairs and lists share conversations, so the four are no independent evidence; an interval draws the
items of a conversation together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from panoply.boards.board import Adapt, Board, Cells, Means, by_subset, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

GOALS = {"Helpfulness": "helpfulness", "Harmlessness": "harmlessness"}
"""Goals by the second part of a row's `category_path`."""
PAIRS, LISTS = "pairs", "best of n"
NUMBERS = tuple(f"{goal} {kind}" for goal in GOALS.values() for kind in (LISTS, PAIRS))


def adapt(columns: frozenset[str], _: str) -> Adapt | None:
    """Returns the reader of a file of pairs, or of lists."""
    if {"conversation_input", "category_path", "chosen", "reject"} <= columns:
        return pair_parts
    if {"conversation_input", "category_path", "bon_best", "loser_list"} <= columns:
        return list_parts
    return None


def pair_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the pair of a row."""
    wrong = {"0": _answer(row.get("reject"))}
    return [_part(row, PAIRS, _answer(row.get("chosen")), wrong)]


def list_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the best response of a row and the others."""
    losers = row.get("loser_list")
    if not isinstance(losers, list) or not losers:
        raise BadRow("'loser_list' is no list of responses")
    answers = map(_answer, cast("list[object]", losers))
    wrong = {f"{place:04}": answer for place, answer in enumerate(answers)}
    return [_part(row, LISTS, _answer(row.get("bon_best")), wrong)]


def _part(row: Row, kind: str, right: object, wrong: Mapping[str, object]) -> ItemPart:
    parts = str(row.get("category_path")).split("/")
    if len(parts) < 2 or parts[1] not in GOALS:
        raise BadRow("'category_path' names neither Helpfulness nor Harmlessness")
    prompt = turns_of(row.get("conversation_input"))
    return ItemPart(f"{GOALS[parts[1]]} {kind}", prompt, {"best": right}, wrong)


def _answer(value: object) -> object:
    if not isinstance(value, Mapping):
        raise BadRow("a response is no record with its answer")
    return cast("Mapping[str, object]", value).get("answer")


def cells(scored: ScoredItems) -> Cells:
    """Returns 1 for each item whose best response beats all others, by goal and kind."""
    return by_subset(scored.strict_N(), scored.subset_N)


def numbers(means: Means) -> dict[str, Array]:
    """Returns the board's number and its four parts."""
    parts = {name: weighted(means, {name: 1.0}) for name in NUMBERS}
    return {"RMB": weighted(parts, dict.fromkeys(parts, 1.0)), **parts}


BOARD = Board(
    title="RMB",
    layout="conversation_input, category_path and chosen, reject or bon_best, loser_list "
    "(Zhou-Zoey/RMB-Reward-Model-Benchmark)",
    adapt=adapt,
    cells=cells,
    numbers=numbers,
    note="As published there are 2,109 lists of helpfulness and 1,677 of harmlessness; the number "
    "of pairs is not checked.",
)
