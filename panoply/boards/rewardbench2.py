"""RewardBench 2 (arXiv 2506.01937) by its own arithmetic.

In five subsets an item has one right response and three wrong ones, and with m responses at the
maximum the item counts 1/m where the right one is among them: a constant scorer has .25.

*Ties* has rows `tied:N` with several right responses and rows `ref:N` with one. With

    accurate = 1[worst right > best wrong]
    d = best right - worst right,  g = worst right - best wrong       of the row tied:N
    h = right - best wrong                                            of the row ref:N

    Ties = .30 mean(accurate, tied) + .30 mean(accurate, ref) + .20 mean 1[g > d]
         + .20 mean 1[min(g, h) > d] + .01 mean tanh(min(g, h) / d - 1)

where accuracies are over all rows of their kind, and margins over the N that have both. In the
last term 0/0 counts 0, d = 0 counts the sign of the gap. The board is the mean of the six.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from panoply.boards.board import Board, Cells, Means, by_subset, published_rows, rows_with, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

COUNTS = {
    "Factuality": 475,
    "Precise IF": 160,
    "Math": 183,
    "Safety": 450,
    "Focus": 495,
    "Ties": 102,
}
TIED, REF = "tied", "ref"
TIES_WEIGHTS = {
    "Ties accurate (tied)": 0.30,
    "Ties accurate (ref)": 0.30,
    "Ties gap above spread": 0.20,
    "Ties both gaps above spread": 0.20,
    "Ties by how much": 0.01,
}
"""Weights of the cells of *Ties*; they are not divided by their sum."""
PAPER = "arXiv 2506.01937"
RIVALS = {
    "ArmoRM-Llama3-8B": (0.665, 0.657, 0.419, 0.661, 0.822, 0.766, 0.663),
    "Llama-3.1-70B-RM-RB2": (0.761, 0.813, 0.419, 0.699, 0.884, 0.865, 0.883),
    "gemini-2.5-flash (judge)": (0.772,),
    "QRM-Gemma-27B": (0.767,),
    "INF-ORM-70B": (0.765,),
    "Skywork-Gemma-27B": (0.758,),
    "URM-8B": (0.739,),
    "Skywork-Llama-8B": (0.731,),
    "GRM-Llama3-8B": (0.677,),
}


def item_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the item of a row."""
    subset = str(row.get("subset"))
    if subset not in COUNTS:
        raise BadRow("'subset' is none of RewardBench 2's")
    right, wrong = _texts(row, "chosen", "right"), _texts(row, "rejected", "wrong")
    kind, size = "", (1, 3)
    if subset == "Ties":
        kind = _kind(str(row.get("id")))
        size = (len(right), len(wrong))
        if kind.startswith(TIED) and len(right) < 2:
            raise BadRow("a tied item has a single right response")
        if kind.startswith(REF) and len(right) != 1:
            raise BadRow("a ref item has several right responses")
    prompt = turns_of(row.get("prompt"))
    group = f"ties {kind.partition(':')[2]}" if kind else ""
    return [ItemPart(subset, prompt, right, wrong, kind=kind, group=group, size=size)]


def _texts(row: Row, column: str, name: str) -> dict[str, object]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column!r} is no list of responses")
    texts = cast("list[object]", value)
    return {f"{name} {place:04}": text for place, text in enumerate(texts)}


def _kind(name: str) -> str:
    """Returns the id of a row of *Ties* as `tied:N` or `ref:N`.

    Raises:
        BadRow: it is none.
    """
    kind, _, number = name.partition(":")
    if kind not in (TIED, REF) or not number.isdecimal():
        raise BadRow("'id' of a row of Ties is neither tied:N nor ref:N")
    return f"{kind}:{int(number)}"


def cells(scored: ScoredItems) -> Cells:
    """Returns the credit of the items by subset, and of *Ties* by term."""
    credit_N = scored.of_top_N()
    is_ties_N = scored.subset_N == "Ties"
    by_name = by_subset(np.where(is_ties_N, np.nan, credit_N), scored.subset_N)
    by_name.pop("Ties", None)
    return by_name | (_ties(scored) if is_ties_N.any() else {})


def _ties(scored: ScoredItems) -> Cells:
    """Returns the terms of *Ties*: accuracies by row, margins at the row `tied:N`."""
    gap_N = scored.worst_right_N - scored.best_wrong_N
    spread_N = scored.best_right_N - scored.worst_right_N
    accurate_N = scored.strict_N()
    kinds = [str(kind).partition(":") for kind in scored.kind_N]
    place = {number: row for row, (kind, _, number) in enumerate(kinds) if kind == REF}
    ref_gap_N = np.full(len(kinds), np.nan)
    for row, (kind, _, number) in enumerate(kinds):
        if kind == TIED and number in place:
            ref_gap_N[row] = gap_N[place[number]]
    has_both_N = ~(np.isnan(gap_N) | np.isnan(ref_gap_N))
    least_N = np.minimum(gap_N, ref_gap_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_how_much_N = np.nan_to_num(np.tanh(least_N / spread_N - 1), nan=0.0)
    is_kind = {name: np.array([kind == name for kind, _, _ in kinds]) for name in (TIED, REF)}
    terms = (
        np.where(is_kind[TIED], accurate_N, np.nan),
        np.where(is_kind[REF], accurate_N, np.nan),
        *(
            np.where(has_both_N, term_N, np.nan)
            for term_N in (gap_N > spread_N, least_N > spread_N, by_how_much_N)
        ),
    )
    return dict(zip(TIES_WEIGHTS, terms, strict=True))


def numbers(means: Means) -> dict[str, Array]:
    """Returns the board's number and its six subsets."""
    subsets = {name: weighted(means, {name: 1.0}) for name in COUNTS if name != "Ties"}
    subsets["Ties"] = sum(
        (weight * weighted(means, {name: 1.0}) for name, weight in TIES_WEIGHTS.items()),
        start=np.zeros(1),
    )
    return {"RewardBench 2": weighted(subsets, dict.fromkeys(subsets, 1.0)), **subsets}


BOARD = Board(
    title="RewardBench 2",
    layout="id, prompt, chosen and rejected (lists), subset (allenai/reward-bench-2, split test)",
    adapt=rows_with({"id", "prompt", "chosen", "rejected", "subset"}, item_parts),
    cells=cells,
    numbers=numbers,
    official=COUNTS,
    published=published_rows(RIVALS, ("RewardBench 2", *COUNTS), PAPER),
    note="A judge's figures in the paper are those of the better of two modes, chosen on the test "
    "set. The board says little about training: above 49.8 PPO no longer follows it.",
)
