"""A board: what its rows say, what its arithmetic makes of scores, and what is known of it.

Legend: `N` items, `S` cells, `B` draws of an interval (or 1, the items as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from panoply.boards.items import ItemPart
from panoply.boards.scored import ScoredItems
from panoply.data.rows import Row
from panoply.types import Array, Strings

Adapt: TypeAlias = Callable[[Row], Iterable[ItemPart]]
"""Reads a row; raises `BadRow` for one that is none of the board's, and has nothing for a tie."""
Recognize: TypeAlias = Callable[[frozenset[str], str], Adapt | None]
"""Returns the reader of a file by its columns and its name as a source; None where it is of no such
board."""
Cells: TypeAlias = dict[str, Array]
"""Credit `[N]` of each item by cell, such as a subset; NaN where the item is not of that cell, or
has no score."""
Means: TypeAlias = Mapping[str, Array]
"""Means `[B]` of cells by name; NaN where a cell has no item."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A scorer's numbers as somebody else published them."""

    scorer: str
    numbers: Mapping[str, float]
    """Some of the board's numbers, by its names."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Everything that tells one board from another."""

    title: str
    layout: str
    """Columns of its files, for the message about a file that has others."""
    adapt: Recognize
    cells: Callable[[ScoredItems], Cells]
    """Returns the credit of each item by cell, with the board's own rule for ties."""
    numbers: Callable[[Means], dict[str, Array]]
    """Returns the board's numbers under its own names, the headline first, from means of cells."""
    official: Mapping[str, int] = field(default_factory=dict[str, int])
    """Items of each subset as published; empty of a board without a fixed set."""
    published: Sequence[PublishedRow] = ()
    note: str = ""
    """What a reader has to know of the numbers."""


def published_rows(
    table: Mapping[str, Sequence[float]], names: Sequence[str], source: str, unit: float = 1.0
) -> tuple[PublishedRow, ...]:
    """Returns the rows of a table of published numbers, of which a scorer may have the first ones.

    Args:
        table: numbers by scorer.
        names: of the numbers.
        source: of the table.
        unit: of the numbers, such as .01 for per cent.
    """
    rows: list[PublishedRow] = []
    for scorer, values in table.items():
        numbers = {name: unit * value for name, value in zip(names, values, strict=False)}
        rows.append(PublishedRow(scorer, numbers, source))
    return tuple(rows)


def rows_with(columns: Iterable[str], item_parts: Adapt) -> Recognize:
    """Returns the `adapt` of a board whose files all have the same columns."""
    needed = frozenset(columns)
    return lambda present, _: item_parts if needed <= present else None


def weighted(means: Means, weights: Mapping[str, float]) -> Array:
    """Returns the weighted mean of some cells; one that has no item counts nowhere.

    NaN where none of them has one: an absent section is not 0.
    """
    present = [name for name in weights if name in means]
    if not present:
        return np.full(num_draws(means), np.nan)
    mean_SB = np.stack([means[name] for name in present])
    weight_S1 = np.array([[weights[name]] for name in present], np.float64)
    weight_SB = np.where(np.isnan(mean_SB), 0.0, weight_S1)
    total_B = weight_SB.sum(axis=0)
    sum_B = (weight_SB * np.nan_to_num(mean_SB)).sum(axis=0)
    return np.divide(sum_B, total_B, out=np.full_like(total_B, np.nan), where=total_B > 0)


def num_draws(means: Means) -> int:
    """Returns B of means; 1 where there is no cell."""
    return next((len(mean_B) for mean_B in means.values()), 1)


def by_subset(credit_N: Array, subset_N: Strings) -> Cells:
    """Returns the credit of items with one cell for each subset, in the order of their names."""
    names = sorted({str(name) for name in subset_N})
    return {name: np.where(subset_N == name, credit_N, np.nan) for name in names}
