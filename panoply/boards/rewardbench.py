"""RewardBench (arXiv 2403.13787) by its own arithmetic, so that a number here is the number there.

    correct_i = 1[R(x, chosen) > R(x, rejected)]               a tie is lost
    acc_s     = mean over the rows of subset s
    section   = sum_s w_s acc_s / sum_s w_s                    with fixed weights w_s
    board     = mean of the four sections

The weights are the counts of rows but for math-prm, whose 447 rows weigh as six times 164: code
and mathematics count alike. The prior sets, which left the board, are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from panoply.boards.board import Board, Cells, Means, PublishedRow, by_subset, rows_with, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

CODE = ("cpp", "go", "java", "js", "python", "rust")
SECTIONS: Mapping[str, Mapping[str, float]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **{f"hep-{name}": 164 for name in CODE}},
}
"""Weights of the subsets by section."""
COUNTS = {
    name: 447 if name == "math-prm" else int(weight)
    for section in SECTIONS.values()
    for name, weight in section.items()
}
SUBSETS = frozenset(COUNTS)


def item_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the pair of a row; rows of other subsets are none of the board's."""
    subset = str(row.get("subset"))
    if subset not in SUBSETS:
        raise BadRow("'subset' is none of RewardBench's")
    prompt = turns_of(row.get("prompt"))
    return [ItemPart(subset, prompt, {"chosen": row["chosen"]}, {"rejected": row["rejected"]})]


def cells(scored: ScoredItems) -> Cells:
    """Returns 1 for each pair won, by subset."""
    return by_subset(scored.strict_N(), scored.subset_N)


def numbers(means: Means) -> dict[str, Array]:
    """Returns the board's number and its sections."""
    sections = {name: weighted(means, weights) for name, weights in SECTIONS.items()}
    return {"RewardBench": weighted(sections, dict.fromkeys(sections, 1.0)), **sections}


BOARD = Board(
    title="RewardBench",
    layout="prompt, chosen, rejected, subset (allenai/reward-bench, split filtered)",
    adapt=rows_with({"prompt", "chosen", "rejected", "subset"}, item_parts),
    cells=cells,
    numbers=numbers,
    official=COUNTS,
    published=(
        PublishedRow(
            "ArmoRM-Llama3-8B",
            {
                "RewardBench": 0.908,
                "Chat": 0.969,
                "Chat Hard": 0.768,
                "Safety": 0.922,
                "Reasoning": 0.973,
            },
            "RewardBench leaderboard",
        ),
    ),
)
