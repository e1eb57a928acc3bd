"""Scores of a board's items as arrays, and what every board's arithmetic is made of.

Legend: `N` items, `R` right and `W` wrong responses of the largest item, `T` responses of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoply.boards.items import BoardItem
from panoply.types import Array, Bools, Ints, Strings


@dataclass(frozen=True, slots=True)
class ScoredItems:
    """One scorer's scores of the items of a board."""

    subset_N: Strings
    kind_N: Strings
    right_NR: Array
    """Scores of the right responses in the board's order; NaN where there is none."""
    wrong_NW: Array
    is_whole_N: Bools
    """Items all of whose responses have a score."""

    @property
    def worst_right_N(self) -> Array:
        """Lowest score of a right response; NaN of an item that lacks a score."""
        return self._whole(np.fmin.reduce(self.right_NR, axis=1))

    @property
    def best_right_N(self) -> Array:
        """Highest score of a right response."""
        return self._whole(np.fmax.reduce(self.right_NR, axis=1))

    @property
    def best_wrong_N(self) -> Array:
        """Highest score of a wrong response."""
        return self._whole(np.fmax.reduce(self.wrong_NW, axis=1))

    def credit(self, is_right_N: Bools) -> Array:
        """Returns 1 where a condition holds and 0 where not; NaN of items that lack a score."""
        return self._whole(is_right_N.astype(np.float64))

    def strict_N(self) -> Array:
        """Returns 1 where the worst right response beats the best wrong one; a tie is lost."""
        return self.credit(self.worst_right_N > self.best_wrong_N)

    def half_N(self) -> Array:
        """Returns 1 for a pair won, 1/2 for a tie, 0 for a loss: the house's own accuracy."""
        return self._whole((np.sign(self.worst_right_N - self.best_wrong_N) + 1) / 2)

    def of_top_N(self) -> Array:
        """Returns 1/m where the first right response is among the m best ones, and 0 elsewhere."""
        first_N = self.right_NR[:, 0]
        all_NC = np.concatenate([self.right_NR, self.wrong_NW], axis=1)
        top_N = np.fmax(self.best_right_N, self.best_wrong_N)
        num_N = (all_NC == top_N[:, None]).sum(axis=1)
        share_N = np.divide(1.0, num_N, out=np.zeros(len(num_N)), where=num_N > 0)
        return self._whole(np.where(first_N == top_N, share_N, 0.0))

    def num_above_N(self) -> Array:
        """Returns how many wrong responses score at least as high as the first right one."""
        above_NW = self.wrong_NW >= self.right_NR[:, :1]
        return self._whole(above_NW.sum(axis=1).astype(np.float64))

    def _whole(self, value_N: Array) -> Array:
        return np.where(self.is_whole_N, value_N, np.nan)


@dataclass(frozen=True, slots=True)
class ItemPlaces:
    """Places of the responses of all items in one row of scores."""

    subset_N: Strings
    kind_N: Strings
    right_NR: Ints
    """Places of the right responses; -1 where there is none."""
    wrong_NW: Ints

    @classmethod
    def of(cls, items: Sequence[BoardItem]) -> ItemPlaces:
        """Returns the places in the responses of all items, one after the other."""
        sizes = [len(item.chat.responses) for item in items]
        start_N = np.cumsum([0, *sizes[:-1]])
        return cls(
            subset_N=np.array([item.subset for item in items], dtype=object),
            kind_N=np.array([item.kind for item in items], dtype=object),
            right_NR=_padded([item.right for item in items], start_N),
            wrong_NW=_padded([item.wrong for item in items], start_N),
        )

    def scored(self, score_T: Array) -> ScoredItems:
        """Returns the items with the scores of all their responses, NaN where missing."""
        right_NR, wrong_NW = taken(score_T, self.right_NR), taken(score_T, self.wrong_NW)
        place_NC = np.concatenate([self.right_NR, self.wrong_NW], axis=1)
        score_NC = np.concatenate([right_NR, wrong_NW], axis=1)
        num_missing_N = np.sum(np.isnan(score_NC) & (place_NC >= 0), axis=1)
        return ScoredItems(self.subset_N, self.kind_N, right_NR, wrong_NW, num_missing_N == 0)


def taken(values_T: Array, places: Ints) -> Array:
    """Returns the values at some places; NaN at -1."""
    return np.where(places >= 0, values_T[places], np.nan)


def _padded(places: Sequence[Sequence[int]], start_N: Ints) -> Ints:
    """Returns lists of places as one array, each moved by where its item starts, filled with -1."""
    padded = np.full((len(places), max(map(len, places))), -1, np.int64)
    for row, of_item in enumerate(places):
        padded[row, : len(of_item)] = np.array(of_item) + start_N[row]
    return padded
