"""The scorer of a composite: asks parts, and makes one score of theirs by the rule of its file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import assert_never

import numpy as np
from pydantic import JsonValue

from panoply.config.composite import (
    CompositeConfig,
    Escalation,
    Fallback,
    GateRule,
    Hierarchy,
    PooledRule,
)
from panoply.scorers.composite.answers import (
    ItemScores,
    PartScores,
    at_places,
    less_length,
    numbers_of,
    preference,
    responses_of,
    scores_of,
)
from panoply.scorers.composite.asking import CallBudget, Escalated, UnsurePair
from panoply.scorers.composite.rules import hierarchy, pooled, scaled, usable
from panoply.scorers.deadline import seconds_left, within
from panoply.scorers.where import Counting, Described, Scorer, parse_where
from panoply.types import Array, Bools
from panoply.wire.request import Item, Score


class CompositeScorer:
    """Several scorers in one.

    The parts' own scores stand beside each score, under their names, in `Details.objectives`. A
    response that lacks a score which the rule needs gets an error that names the part.
    """

    def __init__(
        self,
        config: CompositeConfig,
        parts: Mapping[str, Scorer],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Checks that what is fitted suffices.

        Args:
            config: settings of the file.
            parts: opened scorers by the names of the file.
            clock: seconds, for the budget of an escalation.

        Raises:
            ValueError: see `CompositeConfig.check_fitted`.
        """
        config.check_fitted()
        self.config, self.parts = config, parts
        self.names = tuple(config.parts)
        limit = config.rule.calls_per_minute if isinstance(config.rule, Escalation) else 0.0
        self.budget = CallBudget(limit, clock)
        self.num_unsure = self.num_asked = 0
        """Pairs of an escalation below its threshold, and those that the budget had calls for."""

    def about(self) -> dict[str, JsonValue]:
        """Returns the limits of an escalation, and the kind of each part with what it says."""
        limits: dict[str, JsonValue] = {}
        if isinstance(rule := self.config.rule, Escalation):
            limits = {"pairs_of_a_prompt": rule.most_pairs}
            if rule.calls_per_minute:
                limits["calls_a_minute"] = rule.calls_per_minute
        parts: dict[str, JsonValue] = {}
        for name, part in self.parts.items():
            described = part.about() if isinstance(part, Described) else {}
            parts[name] = {"kind": parse_where(self.config.parts[name].where).kind, **described}
        return {"limits": limits, "parts": parts}

    def counts(self) -> dict[str, float]:
        """Returns the sums of what the parts count, and the pairs that were asked about."""
        sums: dict[str, float] = {}
        for part in self.parts.values():
            if isinstance(part, Counting):
                for name, number in part.counts().items():
                    sums[name] = sums.get(name, 0.0) + number
        if isinstance(self.config.rule, Escalation):
            sums |= {"unsure_pairs": self.num_unsure, "escalated_pairs": self.num_asked}
        return sums

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        match rule := self.config.rule:
            case Escalation():
                scores = await self._escalated(items, rule)
            case Fallback():
                scores = await self._first_whole(items)
            case GateRule() | Hierarchy():
                scores = await self._behind_first(items, rule)
            case _:
                answers = await asyncio.gather(*(self._ask(name, items) for name in self.names))
                scores = [
                    self._pooled(item, dict(zip(self.names, columns, strict=True)), rule)
                    for item, *columns in zip(items, *answers, strict=True)
                ]
        price = self.config.length
        if price is None:
            return tuple(scores)
        return tuple(less_length(price, *pair) for pair in zip(items, scores, strict=True))

    @property
    def compares(self) -> bool:
        """Says whether a temperature is fitted, by which score differences are probabilities."""
        return self.config.fitted is not None and self.config.fitted.temperature is not None

    async def compare(self, items: Sequence[Item]) -> list[Score]:
        """Returns of each item of two responses the probability that the first is better."""
        assert self.config.fitted is not None
        temperature = self.config.fitted.temperature
        assert temperature is not None
        return [preference(a, b, temperature) for a, b in await self.score(items)]

    def weighted(self, weights: Mapping[str, float]) -> CompositeScorer:
        """Returns the same parts by other weights.

        Args:
            weights: by name of the part; one that is not named weighs 0.
        """
        parts = {
            name: replace(part, weight=weights.get(name, 0.0))
            for name, part in self.config.parts.items()
        }
        return CompositeScorer(replace(self.config, parts=parts), self.parts)

    async def _ask(
        self,
        name: str,
        items: Sequence[Item],
        places: Sequence[Sequence[int]] | None = None,
        share: float = 1.0,
    ) -> list[PartScores]:
        """Returns a part's scores by item and response; none of the responses not asked about.

        Args:
            name: of the part.
            items: whole.
            places: numbers of the responses of each item that it is asked about; None: all.
            share: of the time that is left.
        """
        chosen = places or [range(len(item.responses)) for item in items]
        numbers = [number for number, at in enumerate(chosen) if at]
        by_item: list[PartScores] = [[None] * len(item.responses) for item in items]
        if not numbers:
            return by_item
        parts = [responses_of(items[number], chosen[number]) for number in numbers]
        answered = await self._call(name, parts, share)
        for number, scores in zip(numbers, answered, strict=True):
            for place, score in zip(chosen[number], scores, strict=True):
                by_item[number][place] = at_places(score, chosen[number])
        return by_item

    async def _call(
        self, name: str, items: Sequence[Item], share: float = 1.0
    ) -> Sequence[ItemScores]:
        """Returns a part's scores of items; errors where it takes more than its time.

        Its time is a share of what is left for the composite, or less by its own `timeout`.
        """
        timeout = self.config.parts[name].timeout
        left = share * seconds_left()
        seconds = left if timeout is None else min(left, timeout)
        try:
            async with within(seconds):
                return await self.parts[name].score(items)
        except TimeoutError:
            late = Score(error=f"gave no score within {seconds:.3g} s", transient=True)
            return [(late,) * len(item.responses) for item in items]

    def _pooled(
        self, item: Item, answers: Mapping[str, PartScores], rule: PooledRule
    ) -> ItemScores:
        """Returns the scores of an item whose parts have all been asked."""
        quorum = self.config.quorum or len(self.names)
        scores_Kn = np.array([numbers_of(answers[name]) for name in self.names])
        parts_K, responses_n = usable(scores_Kn, quorum)
        names = [name for name, is_used in zip(self.names, parts_K, strict=True) if is_used]
        values_n = np.full(len(item.responses), np.nan)
        if names and responses_n.any():
            z_Kn = np.array([self._scaled(name, answers[name], responses_n) for name in names])
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error
                values_n[responses_n] = pooled(rule, z_Kn, self._quorum_weights(names))
        return scores_of(values_n, answers)

    async def _behind_first(
        self, items: Sequence[Item], rule: GateRule | Hierarchy
    ) -> list[ItemScores]:
        """Returns the scores of a rule that asks the other parts where the first lets it."""
        first = await self._ask(rule.first, items)
        others = [name for name in self.names if name != rule.first]
        passed = [self._passes(rule, scores) for scores in first]
        places = [np.flatnonzero(passed_n).tolist() for passed_n in passed]
        answers = await asyncio.gather(*(self._ask(name, items, places) for name in others))
        results: list[ItemScores] = []
        for number, first_scores in enumerate(first):
            by_name = {name: columns[number] for name, columns in zip(others, answers, strict=True)}
            values_n = self._behind(rule, first_scores, passed[number], by_name)
            results.append(scores_of(values_n, {rule.first: first_scores, **by_name}))
        return results

    def _passes(self, rule: GateRule | Hierarchy, first: PartScores) -> Bools:
        """Returns which responses the other parts are asked about; none whose first score lacks."""
        if isinstance(rule, GateRule):
            return numbers_of(first) > rule.above
        return self._scaled(rule.first, first) >= self._threshold(rule)

    def _behind(
        self,
        rule: GateRule | Hierarchy,
        first: PartScores,
        passed_n: Bools,
        others: Mapping[str, PartScores],
    ) -> Array:
        """Returns the values of one item's responses, NaN where one that is needed is missing."""
        names = list(others)
        z_An = np.full((len(names), len(first)), np.nan)
        is_whole = passed_n & np.isfinite([numbers_of(scores) for scores in others.values()]).all(0)
        for row, name in zip(z_An, names, strict=True):
            row[is_whole] = self._scaled(name, others[name], is_whole)
        weights_A = self._weights(names)
        match rule:
            case GateRule():
                values_n = np.where(passed_n, weights_A @ z_An, rule.otherwise)
                return np.where(np.isnan(numbers_of(first)), np.nan, values_n)
            case Hierarchy():
                (weight,) = self._weights([rule.first])
                z_n, level = self._scaled(rule.first, first), self._threshold(rule)
                return hierarchy(z_n, float(weight), z_An, weights_A, level)
            case _:
                assert_never(rule)

    async def _first_whole(self, items: Sequence[Item]) -> list[ItemScores]:
        """Returns the scores of the first part that has all of an item; else the first part's.

        The parts that are left share the time that is left evenly, so that the last one has some.
        """
        results: list[ItemScores | None] = [None] * len(items)
        answers: list[dict[str, PartScores]] = [{} for _ in items]
        for number_of_part, name in enumerate(self.names):
            open_items = [number for number, result in enumerate(results) if result is None]
            share = 1 / (len(self.names) - number_of_part)
            columns = await self._ask(name, [items[i] for i in open_items], share=share)
            for number, scores in zip(open_items, columns, strict=True):
                answers[number][name] = scores
                if np.isfinite(numbers_of(scores)).all():
                    results[number] = self._of_one(name, answers[number])
        return [
            self._of_one(self.names[0], by_name) if result is None else result
            for result, by_name in zip(results, answers, strict=True)
        ]

    def _of_one(self, name: str, answers: Mapping[str, PartScores]) -> ItemScores:
        """Returns the scores of an item by one part, and errors where it has none."""
        values_n = numbers_of(answers[name])
        is_scored = np.isfinite(values_n)
        values_n[is_scored] = self._scaled(name, answers[name], is_scored)
        return scores_of(values_n, answers)

    async def _escalated(self, items: Sequence[Item], rule: Escalation) -> list[ItemScores]:
        """Returns the scores of the first part, with the second's evidence where it was asked."""
        assert self.config.fitted is not None
        fit = self.config.fitted.escalation
        assert fit is not None
        first = await self._ask(rule.first, items)
        groups = [
            Escalated(item, rule, fit, scores) for item, scores in zip(items, first, strict=True)
        ]
        unsure: list[UnsurePair] = []
        for number, group in enumerate(groups):
            unsure += group.unsure(number)
        unsure.sort(key=lambda pair: pair.size)
        taken = self.budget.affordable(unsure, rule.asks)
        self.num_unsure += len(unsure)
        self.num_asked += len(taken)
        calls: list[tuple[Escalated, tuple[int, ...]]] = []
        for number, group in enumerate(groups):
            of_item = [pair for pair in taken if pair.item == number]
            calls += [(group, places) for places in group.calls(of_item)]
        if calls:
            parts = [responses_of(group.item, places) for group, places in calls]
            answered = await self._call(rule.second, parts)
            for (group, places), scores in zip(calls, answered, strict=True):
                group.learn(places, scores)
        return [group.scores() for group in groups]

    def _threshold(self, rule: Hierarchy) -> float:
        if rule.threshold is not None:
            return rule.threshold
        assert self.config.fitted is not None
        assert self.config.fitted.threshold is not None
        return self.config.fitted.threshold

    def _weights(self, names: Sequence[str]) -> Array:
        """Returns the weights of parts."""
        return np.array([part_weight(self.config, name) for name in names])

    def _quorum_weights(self, names: Sequence[str]) -> Array:
        """Returns the weights of the parts that a quorum has, in all as much as those of all."""
        weights = self._weights(names)
        present, whole = np.abs(weights).sum(), np.abs(self._weights(self.names)).sum()
        is_part = len(names) < len(self.names) and present > 0
        return weights * (whole / present) if is_part else weights

    def _scaled(self, name: str, scores: PartScores, used_n: Bools | None = None) -> Array:
        """Returns a part's scores in the unit of the file, clipped; of the used responses alone."""
        numbers = numbers_of(scores) if used_n is None else numbers_of(scores)[used_n]
        fit = self.config.fitted.parts[name] if self.config.fitted else None
        mean, deviation = (fit.mean, fit.deviation) if fit else (0.0, 1.0)
        z_n = scaled(numbers, self.config.scale, mean, deviation)
        clip = self.config.parts[name].clip
        return z_n if clip is None else np.clip(z_n, *clip)


def part_weight(config: CompositeConfig, name: str) -> float:
    """Returns the weight of a part: the file's own, or the fitted one, or 1."""
    weight = config.parts[name].weight
    if weight is not None:
        return weight
    return config.fitted.parts[name].weight if config.fitted else 1.0
