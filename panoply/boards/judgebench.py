"""JudgeBench (arXiv 2410.12784) by its own arithmetic: two responses by one model, one right.

A judge plays two games, (A, B) and (B, A): each counts +1 with the label, -1 against it and 0
without a verdict or for a tie, and a pair is correct where the sum is above 0. A scorer of single
responses has the same margin in both orders, so one game decides. A judge that compares
(`judge:FILE.yaml`, pairwise) has as the score of a response its share of both games, a tie as half:
the difference has the sign of that sum. A tie is not correct, where the published script lets it
vote B; a game without a verdict leaves the pair without scores, where the script counts it as 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from panoply.boards.board import Board, Cells, Means, by_subset, published_rows, rows_with, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "code",
}
"""Categories by the beginning of the source's name."""
COUNTS = {"knowledge": 154, "reasoning": 98, "math": 56, "code": 42}
RIVALS = {
    "Skywork-Reward-Gemma-2-27B": (64.29, 59.74, 66.33, 83.93, 50.00),
    "InternLM2-20B": (63.43,),
    "Skywork-Reward-Llama-3.1-8B": (62.29,),
    "InternLM2-7B": (59.43,),
    "GRM-Gemma-2B": (59.43, 62.99, 53.06, 64.29, 54.76),
    "o1-mini (judge)": (65.71,),
}
"""Per cent, on the pairs of GPT-4o."""


def item_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the pair of a row."""
    source, label = str(row.get("source")), row.get("label")
    names = [name for start, name in CATEGORIES.items() if source.startswith(start)]
    if not names:
        raise BadRow("'source' is none of JudgeBench's")
    if label not in ("A>B", "B>A"):
        raise BadRow("'label' is neither A>B nor B>A")
    right, wrong = [row.get(f"response_{name}") for name in str(label).split(">")]
    prompt = turns_of(row.get("question"))
    return [ItemPart(names[0], prompt, {"right": right}, {"wrong": wrong})]


def cells(scored: ScoredItems) -> Cells:
    """Returns 1 for each pair with the right response above the other, overall and by category."""
    credit_N = scored.strict_N()
    return {"overall": credit_N, **by_subset(credit_N, scored.subset_N)}


def numbers(means: Means) -> dict[str, Array]:
    """Returns the share of correct pairs, overall and by category."""
    return {name: weighted(means, {name: 1.0}) for name in ("overall", *COUNTS)}


BOARD = Board(
    title="JudgeBench",
    layout="question, response_A, response_B, label, source (ScalerLab/JudgeBench)",
    adapt=rows_with({"question", "response_A", "response_B", "label", "source"}, item_parts),
    cells=cells,
    numbers=numbers,
    official=COUNTS,
    published=published_rows(
        RIVALS, ("overall", *COUNTS), "outputs of arXiv 2410.12784, computed anew", 0.01
    ),
    note="The counts and the published numbers are those of the pairs by GPT-4o; the pairs by "
    "Claude 3.5 Sonnet are another 270. Of 42 pairs of code an interval is about 15 points wide "
    "to each side.",
)
