"""M-RewardBench (arXiv 2410.15522): RewardBench's arithmetic by language, then their mean.

The weights are RewardBench's, which are counts of its English rows, although rows were dropped in
translation: the counts of each language stand beside its numbers. An interval draws the
translations of a row together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from panoply.boards import rewardbench
from panoply.boards.board import Board, Means, rows_with, weighted
from panoply.boards.items import ItemPart
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

BETWEEN = ": "
"""Stands between a language and a subset of RewardBench."""


def item_parts(row: Row) -> Iterable[ItemPart]:
    """Returns the pair of a row, with its language before the subset."""
    language = row.get("language")
    if not isinstance(language, str) or not language:
        raise BadRow("'language' is no text")
    group = f"{row.get('subset')} {row.get('id')}"
    return [
        replace(part, subset=f"{language}{BETWEEN}{part.subset}", group=group)
        for part in rewardbench.item_parts(row)
    ]


def numbers(means: Means) -> dict[str, Array]:
    """Returns the mean over the languages, and the number of each."""
    by_language: dict[str, dict[str, Array]] = {}
    for name, mean_B in means.items():
        language, _, subset = name.partition(BETWEEN)
        by_language.setdefault(language, {})[subset] = mean_B
    languages = {
        language: rewardbench.numbers(of_subsets)[rewardbench.BOARD.title]
        for language, of_subsets in by_language.items()
    }
    return {"M-RewardBench": weighted(languages, dict.fromkeys(languages, 1.0)), **languages}


BOARD = Board(
    title="M-RewardBench",
    layout="id, language, prompt, chosen, rejected, subset "
    "(CohereLabsCommunity/multilingual-reward-bench)",
    adapt=rows_with({"id", "language", "prompt", "chosen", "rejected", "subset"}, item_parts),
    cells=rewardbench.cells,
    numbers=numbers,
    note="Subsets have the weights of RewardBench's English rows in every language.",
)
