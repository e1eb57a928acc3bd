"""Pairs of one's own, in any layout of pairs, with the accuracy of this project: a tie counts half.

accuracy   = (wins + ties / 2) / n
macro      = mean of the accuracies by source
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from panoply.boards.board import Adapt, Board, Cells, Means, by_subset, weighted
from panoply.boards.items import ItemPart
from panoply.boards.scored import ScoredItems
from panoply.data.layouts import pair_layout
from panoply.data.parse import source_of
from panoply.data.rows import FileLayout, RawPair, Row
from panoply.types import Array
from panoply.wire.conversation import is_null

ALL = "all"
SOURCE = "source "


def adapt(columns: frozenset[str], name: str) -> Adapt | None:
    """Returns the reader of a file of pairs, whose source is the file's where rows name none."""
    try:
        return partial(item_parts, layout=pair_layout(columns), name=name)
    except ValueError:
        return None


def item_parts(row: Row, layout: FileLayout[RawPair], name: str) -> Iterable[ItemPart]:
    """Returns the pairs of a row; none for a tie."""
    pairs = [pair for pair in layout.adapt(row) if not pair.is_tie]
    return [
        ItemPart(
            subset=(source_of(pair.source) if layout.has_source else "") or name,
            prompt=pair.prompt,
            right={"chosen": pair.chosen},
            wrong={"rejected": pair.rejected},
            split_group="" if is_null(pair.group) else str(pair.group),
        )
        for pair in pairs
    ]


def cells(scored: ScoredItems) -> Cells:
    """Returns the wins, ties as halves, of all pairs and by source."""
    credit_N = scored.half_N()
    by_source = by_subset(credit_N, scored.subset_N)
    return {ALL: credit_N, **{SOURCE + name: cell for name, cell in by_source.items()}}


def numbers(means: Means) -> dict[str, Array]:
    """Returns the accuracy over all pairs, and the mean over sources."""
    sources = {name: 1.0 for name in means if name.startswith(SOURCE)}
    return {"accuracy": weighted(means, {ALL: 1.0}), "macro": weighted(means, sources)}


BOARD = Board(
    title="Pairs",
    layout="a known layout of pairs (docs/data.md)",
    adapt=adapt,
    cells=cells,
    numbers=numbers,
)
