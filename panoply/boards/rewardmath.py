"""RewardMATH (arXiv 2410.01729) by its own arithmetic: one right solution among nine wrong ones.

    accuracy            = mean 1[s_right > max of the wrong]
    accuracy with ties  = mean 1[s_right >= max of the wrong]
    MRR                 = mean 1 / (1 + #{wrong >= right})       ties against the right one
    pairs won           = mean share of the wrong that score less
    1/m                 = mean 1/m with m solutions at the maximum, the right one among them

Steps are joined by line breaks, so that `?steps=product&split=lines` behind a process reward model
splits them as published. Rows are grouped by `problem_id`: problems repeat in published files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from panoply.boards.board import Board, Cells, Means, published_rows, rows_with, weighted
from panoply.boards.items import ItemPart, turns_of
from panoply.boards.scored import ScoredItems
from panoply.data.quarantine import BadRow
from panoply.data.rows import Row
from panoply.types import Array

NUM_WRONG = 9
NUMBERS = ("accuracy", "accuracy with ties", "MRR", "pairs won", "1/m")
RIVALS = {
    "InternLM2-7B": (37.27, 37.27, 55.17),
    "InternLM2-20B": (33.95, 33.95, 51.95),
    "GRM-Llama3-8B": (24.43, 24.84, 45.80),
    "Skywork-Llama3.1-8B": (22.15, 22.15, 44.69),
    "ArmoRM": (20.50, 21.53, 42.18),
    "Eurus-7B": (16.98, 16.98, 38.30),
    "Beaver-7B": (7.25, 7.25, 26.59),
    "Oasst-deberta": (7.04, 7.04, 27.03),
    "GRM-Gemma-2B": (4.97, 4.97, 24.10),
}
"""Per cent."""


def item_parts(row: Row) -> Iterable[ItemPart]:
    """Returns one solution of a problem."""
    steps = row.get("eval_solution")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise BadRow("'eval_solution' is no list of steps")
    solution = "\n".join(cast("list[str]", steps))
    kind, name = row.get("solution_type"), str(row.get("solution_reference"))
    if kind not in ("chosen", "rejected"):
        raise BadRow("'solution_type' is neither chosen nor rejected")
    is_right = kind == "chosen"
    return [
        ItemPart(
            subset="",
            prompt=turns_of(row.get("problem")),
            right={name: solution} if is_right else {},
            wrong={} if is_right else {name: solution},
            key=str(row.get("problem_id")),
            size=(1, NUM_WRONG),
        )
    ]


def cells(scored: ScoredItems) -> Cells:
    """Returns the terms of each number."""
    above_N = scored.num_above_N()
    with_ties_N = scored.credit(scored.worst_right_N >= scored.best_wrong_N)
    num_wrong_N = (~np.isnan(scored.wrong_NW)).sum(axis=1)
    terms = (
        scored.strict_N(),
        with_ties_N,
        1 / (1 + above_N),
        1 - above_N / np.maximum(num_wrong_N, 1),
        scored.of_top_N(),
    )
    return dict(zip(NUMBERS, terms, strict=True))


def numbers(means: Means) -> dict[str, Array]:
    """Returns the means under the board's names."""
    return {name: weighted(means, {name: 1.0}) for name in NUMBERS}


BOARD = Board(
    title="RewardMATH",
    layout="problem, problem_id, eval_solution, solution_type, solution_reference "
    "(RewardMATH/RewardMATH)",
    adapt=rows_with(
        {"problem", "problem_id", "eval_solution", "solution_type", "solution_reference"},
        item_parts,
    ),
    cells=cells,
    numbers=numbers,
    official={"": 483},
    published=published_rows(
        RIVALS, NUMBERS, "score files of arXiv 2410.01729, computed anew", 0.01
    ),
)
