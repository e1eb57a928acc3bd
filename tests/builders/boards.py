"""Scores of a board's items without texts, as published files have them."""

import csv
from pathlib import Path

import numpy as np

from panoply.boards.scored import ScoredItems

PUBLISHED = Path(__file__).parents[1] / "published"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "arms"
"""Tables of published scores, which the repository does not hold."""


def scored_items(right, wrong, subsets=None, kinds=None):
    """Items with lists of scores of their right and wrong responses; None is missing."""
    right, wrong = [list(scores) for scores in right], [list(scores) for scores in wrong]
    is_whole = [None not in (*better, *worse) for better, worse in zip(right, wrong, strict=True)]
    return ScoredItems(
        subset_N=np.array(subsets or [""] * len(right), dtype=object),
        kind_N=np.array(kinds or [""] * len(right), dtype=object),
        right_NR=_padded(right),
        wrong_NW=_padded(wrong),
        is_whole_N=np.array(is_whole),
    )


def _padded(rows):
    width = max(map(len, rows))
    return np.array([[*row, *[None] * (width - len(row))] for row in rows], dtype=np.float64)


def numbers_of(board, scored):
    """The board's numbers."""
    means = {name: np.array([mean(cell)]) for name, cell in board.cells(scored).items()}
    return {name: float(value[0]) for name, value in board.numbers(means).items()}


def mean(cell):
    """The mean of the items that count; NaN where there is none."""
    counted = cell[~np.isnan(cell)]
    return counted.mean() if len(counted) else float("nan")


def published_columns(name):
    """The columns of a file of published scores, by name."""
    with (PUBLISHED / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {column: [row[column] for row in rows] for column in rows[0]}
