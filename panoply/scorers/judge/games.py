"""Games between responses: what verdicts on them against each other say, order by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TypeAlias

import numpy as np

from panoply.config.judge import Listwise, Pairwise
from panoply.scorers.judge.client import JudgeError
from panoply.scorers.judge.ranking import games_of_ranking
from panoply.scorers.judge.verdicts import Judged
from panoply.types import Array

Result: TypeAlias = Judged | JudgeError


@dataclass(slots=True)
class PairTally:
    """Verdicts on pairs since the start, by the order in which their responses were shown."""

    pairs: int = 0
    """Pairs that were judged in both orders."""
    inconsistent_pairs: int = 0
    """Pairs of which the order decided: twice the first one was better, or twice the second one."""
    decided: int = 0
    """Verdicts on a pair in one order that are no tie."""
    preferred_first: int = 0
    """Those that prefer the response shown first."""

    def add(self, first: float, swapped: float) -> None:
        """Counts a pair.

        Args:
            first: probability that the first response shown is better.
            swapped: the same in the other order.
        """
        self.pairs += 1
        self.inconsistent_pairs += (first - 0.5) * (swapped - 0.5) > 0
        self.decided += (first != 0.5) + (swapped != 0.5)
        self.preferred_first += (first > 0.5) + (swapped > 0.5)


class Games:
    """Games between the responses to a prompt.

    A round shows some of them in an order, and in the reverse of it. It counts where both have a
    verdict: one alone would give credit for a place.
    """

    def __init__(self, num: int, mode: Pairwise | Listwise, tally: PairTally) -> None:
        """Begins without games.

        Args:
            num: n, responses.
            mode: of the judge.
            tally: counts the pairs.
        """
        self.mode, self.tally = mode, tally
        self.wins_nn: Array = np.zeros((num, num))
        """Games that one won against another, a tie as half."""
        self.games_nn: Array = np.zeros((num, num))
        """Games of two."""
        self.results_n: list[list[Result]] = [[] for _ in range(num)]
        """Results of each response, of a round both orders one after the other."""
        self.num_held_n, self.num_expected_n = [0] * num, [0] * num
        """Rounds of each response that count, and all of them."""

    def add(self, places: Sequence[int], first: Result, reverse: Result) -> None:
        """Adds a round.

        Args:
            places: of the responses that were shown, in this order.
            first: result in this order.
            reverse: result in the reverse order.
        """
        for place in places:
            self.results_n[place] += [first, reverse]
            self.num_expected_n[place] += 1
        if not isinstance(first, Judged) or not isinstance(reverse, Judged):
            return
        for place in places:
            self.num_held_n[place] += 1
        square = np.ix_(places, places)
        self.wins_nn[square] += self._wins(first, reverse)
        self.games_nn[square] += 1 - np.eye(len(places))

    def by_order(self) -> tuple[float, float]:
        """Returns the probability that the first of two responses is better, by the order shown.

        The first number is the mean where it is shown first, the second where it is shown second,
        of the rounds that count: one at least.
        """
        shown_first: list[float] = []
        shown_second: list[float] = []
        results = self.results_n[0]
        for result, reverse in zip(results[::2], results[1::2], strict=True):
            if not isinstance(result, Judged) or not isinstance(reverse, Judged):
                continue
            for judged in (result, reverse):
                p_shown_first = float(self._won(judged)[0, 1])
                if judged.verdict.shown[0] == 0:
                    shown_first.append(p_shown_first)
                else:
                    shown_second.append(1 - p_shown_first)
        return fmean(shown_first), fmean(shown_second)

    def _wins(self, first: Judged, reverse: Judged) -> Array:
        """Returns who won against whom `[m, m]` in a round of m responses, in the first order.

        Each pair of it is counted, by the order in which it was shown.
        """
        first_mm = self._won(first)
        reverse_mm = self._won(reverse)[::-1, ::-1]
        for i, j in combinations(range(len(first_mm)), 2):
            self.tally.add(float(first_mm[i, j]), float(reverse_mm[j, i]))
        return (first_mm + reverse_mm) / 2

    def _won(self, judged: Judged) -> Array:
        """Returns who won against whom `[m, m]` by one verdict, in the order shown."""
        if isinstance(self.mode, Listwise):
            return games_of_ranking(judged.numbers)
        p_first = judged.numbers[0]
        return np.array([[0.0, p_first], [1 - p_first, 0.0]])
