"""Report of scorers on a board: its own numbers, with intervals, controls and paired differences.

A function of items and scores alone. A board makes cells of credits by item, and its numbers of the
means of the cells; an interval resamples the items of a prompt together and makes the same numbers
of the means of each draw.

Legend: `N` items, `G` groups of them, `T` responses of all items, `P` pairs of a right and a wrong
response, `M` sums, `B` draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from panoply.boards.board import Board, Cells
from panoply.boards.items import BoardItem
from panoply.boards.scored import ItemPlaces, taken
from panoply.measure.calibration import ece, ece_floor, fit_scale, log_loss
from panoply.measure.intervals import group_index, percentiles, rates, resampled_sums, strata, wins
from panoply.types import Array, Bools, Ints

Numbers: TypeAlias = dict[str, Any]
BlockName: TypeAlias = tuple[str, str]
"""Part of the items that a block of cells has, and the scorer."""
SUMS_AT_ONCE = 1 << 21
"""Sums by group and cell that are drawn at once."""
CONSTANT, LENGTH, RANDOM = "constant", "length", "random"
"""Scorers that every board has beside those that are asked: all alike, characters, and numbers
drawn by a fixed seed."""


@dataclass(frozen=True, slots=True)
class BoardTable:
    """The items of a board as arrays."""

    board: Board
    places: ItemPlaces
    group_N: Ints
    """Unit of resampling, 0 .. num_groups - 1."""
    num_groups: int
    length_T: Array
    """Characters of each response."""

    @classmethod
    def of(cls, board: Board, items: Sequence[BoardItem]) -> BoardTable:
        """Returns the table of some items."""
        lengths = [len(text) for item in items for text in item.chat.responses]
        group_N, num_groups = group_index([item.group for item in items])
        return cls(
            board=board,
            places=ItemPlaces.of(items),
            group_N=group_N,
            num_groups=num_groups,
            length_T=np.array(lengths, dtype=np.float64),
        )

    def cells(self, score_T: Array) -> Cells:
        """Returns the credit of each item by cell."""
        return self.board.cells(self.places.scored(score_T))

    def controls(self) -> dict[str, Array]:
        """Returns the scores of the controls."""
        random_T = np.random.default_rng(0).random(len(self.length_T))
        return {CONSTANT: np.zeros_like(random_T), LENGTH: self.length_T, RANDOM: random_T}


def board_report(
    table: BoardTable,
    scores: Mapping[str, Array],
    seen: Mapping[str, Bools],
    overlapping_N: Bools | None = None,
) -> Numbers:
    """Returns the report of a board.

    Args:
        table: the board's items.
        scores: `[T]` of all responses by scorer, NaN where missing; the first scorer is the one
            that others are compared with.
        seen: items `[N]` whose prompts a scorer was trained on, as far as that is known.
        overlapping_N: items whose prompts stand in training files; None: none was looked at.
    """
    names = list(scores)
    results = _results(table, _blocks(table, scores, seen, overlapping_N))
    report = _coverage(table)
    headline = _headline([results["all", name].values for name in names])
    report |= {"numbers": list(results["all", names[0]].values), "headline": headline}
    report["overlapping"] = None if overlapping_N is None else int(overlapping_N.sum())
    report["scorers"] = {}
    for name, score_T in scores.items():
        entry = results["all", name].entry() | _counts(table, score_T)
        entry["cells"] = results["all", name].cells
        entry["pairs"] = pair_numbers(table, score_T)
        entry["seen"] = int(seen[name].sum())
        for part in ("unseen", "clean"):
            if (part, name) in results:
                entry[part] = results[part, name].entry()
        report["scorers"][name] = entry
    report["controls"] = {
        name: results["all", name].entry() | {"pairs": pair_numbers(table, score_T)}
        for name, score_T in table.controls().items()
    }
    report["paired"] = {}
    for name in names[1:]:
        first = results["pair of the first", name]
        difference = results["pair", name].difference(first, headline)
        report["paired"][f"{name} - {names[0]}"] = difference
    return report


def _blocks(
    table: BoardTable,
    scores: Mapping[str, Array],
    seen: Mapping[str, Bools],
    overlapping_N: Bools | None,
) -> Iterator[tuple[BlockName, Cells]]:
    """Yields the cells that the report has numbers of, one scorer's after the other's."""
    first_name = next(iter(scores))
    first = table.cells(scores[first_name])
    for name, score_T in scores.items():
        cells = table.cells(score_T)
        yield ("all", name), cells
        if seen[name].any():
            yield ("unseen", name), _masked(cells, seen[name])
        if overlapping_N is not None:
            yield ("clean", name), _masked(cells, overlapping_N)
        if name != first_name:
            of_scorer, of_first = _of_both(cells, first)
            yield ("pair", name), of_scorer
            yield ("pair of the first", name), of_first
    for name, score_T in table.controls().items():
        yield ("all", name), table.cells(score_T)


def _headline(values: Sequence[Mapping[str, float]]) -> str:
    """Returns the first number that any scorer has: files may hold a part of a board alone."""
    names = list(values[0])
    has_value = [any(not np.isnan(of_scorer[name]) for of_scorer in values) for name in names]
    return names[has_value.index(True)] if any(has_value) else names[0]


def _coverage(table: BoardTable) -> Numbers:
    """Returns how many items there are of how many that the board has."""
    subsets, counts = np.unique(table.places.subset_N.astype(str), return_counts=True)
    num = dict(zip(subsets.tolist(), counts.tolist(), strict=True))
    official = table.board.official
    lacking = {
        name: [num.get(name, 0), size] for name, size in official.items() if num.get(name) != size
    }
    return {
        "title": table.board.title,
        "note": table.board.note,
        "n": len(table.places.subset_N),
        "official": sum(official.values()) if official else None,
        "complete": not lacking if official else None,
        "lacking": lacking,
        "published": [
            {"scorer": row.scorer, "numbers": dict(row.numbers), "source": row.source}
            for row in table.board.published
        ],
    }


def _counts(table: BoardTable, score_T: Array) -> Numbers:
    """Returns what is missing of a scorer, and how often the best right and wrong are equal."""
    scored = table.places.scored(score_T)
    is_whole = scored.is_whole_N
    is_tie = scored.best_right_N[is_whole] == scored.best_wrong_N[is_whole]
    return {
        "n": int(is_whole.sum()),
        "missing": int((~is_whole).sum()),
        "missing_scores": int(np.isnan(score_T).sum()),
        "ties": float(is_tie.mean()) if len(is_tie) else float("nan"),
    }


@dataclass(frozen=True, slots=True)
class _Result:
    """The numbers of one block of cells, and of each draw of the items."""

    values: Mapping[str, float]
    drawn: Mapping[str, Array]
    cells: Mapping[str, Numbers]

    def entry(self) -> Numbers:
        """Returns the numbers with their intervals."""
        intervals = {name: percentiles(drawn_B) for name, drawn_B in self.drawn.items()}
        return {"values": dict(self.values), "ci95": intervals}

    def difference(self, other: _Result, name: str) -> Numbers:
        """Returns how far a number lies above that of another block, on the same draws."""
        return {
            "value": self.values[name] - other.values[name],
            "ci95": percentiles(self.drawn[name] - other.drawn[name]),
        }


def _results(
    table: BoardTable, blocks: Iterable[tuple[BlockName, Cells]]
) -> dict[BlockName, _Result]:
    """Returns the numbers of all blocks of cells, whose items are drawn alike.

    Blocks are drawn some at a time, so that memory does not grow with the scorers.
    """
    results: dict[BlockName, _Result] = {}
    cells_of: dict[BlockName, list[str]] = {}
    columns: list[Array] = []
    for block_name, block in blocks:
        cells_of[block_name] = list(block)
        for cell_N in block.values():
            columns += _sums(cell_N, table.group_N, table.num_groups)
        if len(columns) * table.num_groups > SUMS_AT_ONCE:
            results |= _drawn(table, cells_of, columns)
            cells_of, columns = {}, []
    return results | (_drawn(table, cells_of, columns) if columns else {})


def _drawn(
    table: BoardTable, cells_of: Mapping[BlockName, Sequence[str]], columns: Sequence[Array]
) -> dict[BlockName, _Result]:
    """Returns the numbers of some blocks from the sums of their cells, two columns each."""
    sums_GM = np.stack(columns, axis=1)
    total = rates(sums_GM.sum(axis=0)[None])
    drawn = rates(resampled_sums(sums_GM, np.arange(table.num_groups)))
    counts = sums_GM[:, 1::2].sum(axis=0)
    results: dict[BlockName, _Result] = {}
    start = 0
    for block_name, names in cells_of.items():
        here = slice(start, start + len(names))
        means = dict(zip(names, total[:, here].T, strict=True))
        draws = dict(zip(names, drawn[:, here].T, strict=True))
        values = {name: float(value[0]) for name, value in table.board.numbers(means).items()}
        sizes = dict(zip(names, counts[here].tolist(), strict=True))
        cells = {name: {"value": float(means[name][0]), "n": sizes[name]} for name in names}
        results[block_name] = _Result(values, table.board.numbers(draws), cells)
        start += len(names)
    return results


def _sums(cell_N: Array, index_N: Ints, num_groups: int) -> tuple[Array, Array]:
    """Returns the credit of each group `[G]`, and the number of its items that count."""
    counted_N = ~np.isnan(cell_N)
    index, credit = index_N[counted_N], cell_N[counted_N]
    summed_G = np.bincount(index, weights=credit, minlength=num_groups)
    count_G = np.bincount(index, minlength=num_groups)
    return summed_G.astype(np.float64), count_G.astype(np.float64)


def _masked(cells: Cells, left_out_N: Bools) -> Cells:
    return {name: np.where(left_out_N, np.nan, cell_N) for name, cell_N in cells.items()}


def _of_both(cells: Cells, others: Cells) -> tuple[Cells, Cells]:
    """Returns the cells of two scorers on the items that both have scored."""
    first: Cells = {}
    second: Cells = {}
    for name, cell_N in cells.items():
        is_missing_N = np.isnan(cell_N) | np.isnan(others[name])
        first[name] = np.where(is_missing_N, np.nan, cell_N)
        second[name] = np.where(is_missing_N, np.nan, others[name])
    return first, second


def pair_numbers(table: BoardTable, score_T: Array) -> Numbers:
    """Returns the house's numbers on all pairs of a right and a wrong response of an item.

    A tie counts half. `log_loss` and `ece` are of margins at a temperature that was fitted on the
    other half of the prompts, so that every scorer has one and none is judged on what it is fitted
    on.
    """
    right_P, wrong_P, item_P = _pairs_of(table.places)
    margin_P = taken(score_T, right_P) - taken(score_T, wrong_P)
    gap_P = table.length_T[right_P] - table.length_T[wrong_P]
    scored_P = ~np.isnan(margin_P)
    margin_P, gap_P, item_P = margin_P[scored_P], gap_P[scored_P], item_P[scored_P]
    half_P = table.group_N[item_P] % 2 == 1
    odds_P = np.zeros_like(margin_P)
    for half in (False, True):
        here_P, others_P = half_P == half, margin_P[half_P != half]
        odds_P[here_P] = margin_P[here_P] * (fit_scale(others_P) if len(others_P) else 0.0)
    longer, shorter = rates(np.stack(strata(margin_P, gap_P), axis=1).sum(axis=0)[None])[0]
    num = len(margin_P)
    return {
        "accuracy": float(wins(margin_P).mean()) if num else float("nan"),
        "accuracy_length_balanced": float((longer + shorter) / 2),
        "accuracy_chosen_longer": float(longer),
        "accuracy_chosen_shorter": float(shorter),
        "ties": float((margin_P == 0).mean()) if num else float("nan"),
        "log_loss": log_loss(odds_P),
        "ece": ece(odds_P) if odds_P.any() else float("nan"),
        "ece_floor": ece_floor(odds_P) if odds_P.any() else float("nan"),
        "n": num,
    }


def _pairs_of(places: ItemPlaces) -> tuple[Ints, Ints, Ints]:
    """Returns the places of both responses of each pair, and the row of its item."""
    right_NRW, wrong_NRW = np.broadcast_arrays(
        places.right_NR[:, :, None], places.wrong_NW[:, None, :]
    )
    is_pair = (right_NRW >= 0) & (wrong_NRW >= 0)
    return right_NRW[is_pair], wrong_NRW[is_pair], np.nonzero(is_pair)[0]
