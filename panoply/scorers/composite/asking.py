"""Whom an escalation asks about what: unsure pairs, a budget of calls, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from panoply.config.composite import Asks, Escalation
from panoply.config.composite_fit import EscalationFit
from panoply.scorers.composite.answers import PartScores, at_places, composite_score, failure
from panoply.scorers.composite.escalation import fused_scores, group_unit, unsure_pairs
from panoply.types import Array
from panoply.wire.request import Item, Score


class UnsurePair(NamedTuple):
    """Two responses to a prompt between which the first part is unsure."""

    size: float
    """Margin of the first part, in the unit of the group."""
    item: int
    """Number of the prompt in the request."""
    a: int
    b: int


class CallBudget:
    """Calls that may be made now: so many in a minute, and as many at once after a quiet one."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        """Starts full.

        Args:
            per_minute: calls; 0: no limit.
            clock: seconds.
        """
        self.per_minute, self.clock = per_minute, clock
        self._left, self._seen = per_minute, clock()

    def take(self, num: int) -> bool:
        """Takes a number of calls; returns False, and takes none, where they are not there."""
        if not self.per_minute:
            return True
        now = self.clock()
        earned = (now - self._seen) * self.per_minute / 60
        self._left, self._seen = min(self.per_minute, self._left + earned), now
        if num > self._left:
            return False
        self._left -= num
        return True

    def affordable(self, pairs: Sequence[UnsurePair], asks: Asks) -> list[UnsurePair]:
        """Returns the pairs that the budget has calls for, and takes the calls.

        Args:
            pairs: the least sure ones first.
            asks: a call is a pair, or a response that no pair before has.
        """
        taken: list[UnsurePair] = []
        rated: set[tuple[int, int]] = set()
        for pair in pairs:
            responses = {(pair.item, pair.a), (pair.item, pair.b)} - rated
            if not self.take(1 if asks == "pairs" else len(responses)):
                break
            rated |= responses
            taken.append(pair)
        return taken


class Escalated:
    """One prompt's responses: the first part's scores, and what the second says of some pairs."""

    def __init__(self, item: Item, rule: Escalation, fit: EscalationFit, first: PartScores) -> None:
        self.item, self.rule, self.fit, self.first = item, rule, fit, first
        self.scored = [i for i, score in enumerate(first) if score is not None and not score.error]
        """Numbers of the responses that the first part has scored; others are errors."""
        numbers = [score.score for score in first if score is not None and score.score is not None]
        self.scores_n = np.array(numbers, np.float64)
        self.unit = group_unit(self.scores_n, fit.spread)
        size = len(first)
        self.verdict_nn = np.full((size, size), np.nan)
        self.failed: dict[int, Score] = {}
        """Errors of the second part, by response."""
        self.evidence: list[list[Score]] = [[] for _ in first]
        """Scores of the second part, by response."""
        self.pairs: list[UnsurePair] = []
        """Pairs about which the second part is asked."""

    def unsure(self, number: int) -> list[UnsurePair]:
        """Returns the pairs that are worth asking about, as those of item `number`."""
        z_nn = (self.scores_n[:, None] - self.scores_n[None, :]) / self.unit
        pairs = unsure_pairs(z_nn, self.fit, self.rule.most_pairs)
        return [
            UnsurePair(float(abs(z_nn[i, j])), number, self.scored[i], self.scored[j])
            for i, j in pairs
        ]

    def calls(self, pairs: Sequence[UnsurePair]) -> list[tuple[int, ...]]:
        """Returns the responses of each call that asks about these pairs."""
        self.pairs = list(pairs)
        if self.rule.asks == "pairs" or not pairs:
            return [(pair.a, pair.b) for pair in pairs]
        places = {pair.a for pair in pairs} | {pair.b for pair in pairs}
        return [tuple(sorted(places))]

    def learn(self, places: Sequence[int], scores: Sequence[Score]) -> None:
        """Takes over the second part's scores of some responses, for the pairs asked about."""
        by_place = dict(zip(places, scores, strict=True))
        for place, score in by_place.items():
            self.evidence[place].append(at_places(score, places))
        for pair in self.pairs:
            a, b = by_place.get(pair.a), by_place.get(pair.b)
            if a is None or b is None:
                continue
            if a.score is None or b.score is None:
                self.failed |= {p: s for p, s in ((pair.a, a), (pair.b, b)) if s.error}
                continue
            self.verdict_nn[pair.a, pair.b] = a.score - b.score
            self.verdict_nn[pair.b, pair.a] = b.score - a.score

    def scores(self) -> tuple[Score, ...]:
        """Returns the score of each response in log odds, with both parts' evidence beside it."""
        second = self.rule.second
        value: dict[int, float] = {}
        if self.scored:
            verdict_nn = self.verdict_nn[np.ix_(self.scored, self.scored)]
            values_n = fused_scores(self.scores_n, verdict_nn, self.unit, self.fit)
            value = dict(zip(self.scored, values_n.tolist(), strict=True))
        results: list[Score] = []
        for place, score in enumerate(self.first):
            by_part = {self.rule.first: score}
            if place in self.failed and self.rule.when_second_fails == "error":
                results.append(failure({second: self.failed[place]}))
            elif place not in value:
                results.append(failure(by_part))
            else:
                more, evidence = self._margins(place), self.evidence[place]
                results.append(composite_score(value[place], by_part, more, evidence))
        return tuple(results)

    def _margins(self, place: int) -> dict[str, float]:
        """Returns the second part's mean margin of a response, and the pairs that it is of."""
        verdicts: Array = self.verdict_nn[place]
        num = int(np.isfinite(verdicts).sum())
        if not num:
            return {}
        second = self.rule.second
        return {second: float(np.nanmean(verdicts)), f"{second}.pairs": float(num)}
