"""Numbers of a composite, fitted on pairs that its parts have scored.

Everything here is a function of recorded scores, so that a rule can be judged without asking a part
again.

Shapes: K parts, N texts (responses, prompt by prompt), P pairs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from panoply.config.composite import CompositeConfig, GateRule, Hierarchy
from panoply.config.composite_fit import CompositeFit, PartFit
from panoply.data.schema import text_id
from panoply.measure.intervals import wins
from panoply.scorers.composite.fitting import fit_weights
from panoply.scorers.composite.rules import hierarchy, scaled
from panoply.scorers.composite.scorer import CompositeScorer, part_weight
from panoply.types import Array, Bools, Ints
from panoply.wire.request import Chat, Item, Message, Score, scored

NUM_THRESHOLDS = 20
"""Thresholds of a hierarchy that are tried, at equal steps of the first part's ranks."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs whose responses all parts have scored."""

    items: Sequence[Chat]
    """Prompts, each with the responses of its pairs."""
    values: Mapping[str, Array]
    """Scores `[N]` by part, response by response in the order of the items; NaN where missing."""
    chosen_P: Ints
    """Text of each pair's better response."""
    rejected_P: Ints

    def margins(self, values_N: Array) -> Array:
        """Returns score(chosen) - score(rejected), `[P]`."""
        return values_N[self.chosen_P] - values_N[self.rejected_P]

    def texts(self) -> list[tuple[tuple[Message, ...], str]]:
        """Returns prompt and response of each text, `[N]`."""
        texts: list[tuple[tuple[Message, ...], str]] = []
        for item in self.items:
            texts += [(item.prompt, response) for response in item.responses]
        return texts

    def texts_of(self, rows: Ints) -> Bools:
        """Returns which texts belong to some pairs, `[N]`."""
        count = sum(len(item.responses) for item in self.items)
        taken = np.zeros(count, np.bool_)
        taken[self.chosen_P[rows]] = taken[self.rejected_P[rows]] = True
        return taken

    def groups(self, values_N: Array) -> list[Array]:
        """Returns the values of each prompt's responses."""
        ends = np.cumsum([len(item.responses) for item in self.items])
        return np.split(values_N, ends[:-1])


def fit_parts(config: CompositeConfig, pairs: ScoredPairs, rows: Ints) -> dict[str, PartFit]:
    """Returns mean, deviation and weight of each part.

    Mean and deviation are of the texts of the pairs; the weights make the sum of scaled scores the
    likeliest (Bradley-Terry), none below 0.

    Args:
        config: settings, fitted or not.
        pairs: scored pairs.
        rows: pairs that are fitted on.

    Raises:
        ValueError: a part has no score of any text, or the same one of every text.
    """
    taken = pairs.texts_of(rows)
    fits: dict[str, PartFit] = {}
    margins: list[Array] = []
    for name in config.parts:
        values = pairs.values[name][taken]
        values = values[np.isfinite(values)]
        if not len(values):
            raise ValueError(f"part {name!r} has scored none of the {len(rows):,} pairs")
        deviation = float(values.std())
        if isinstance(config.rule, GateRule) and name == config.rule.first:
            deviation = deviation or 1.0  # a gate is in its own unit, and all may pass it
        if not deviation > 0:
            raise ValueError(
                f"part {name!r} gives all of {len(values):,} texts the score {values[0]:g}, which "
                "has no deviation to measure in: leave it out, or take other pairs"
            )
        fits[name] = PartFit(mean=float(values.mean()), deviation=deviation)
        margins.append(pairs.margins(_scaled_texts(config, name, fits[name], pairs))[rows])
    weights = fit_weights(np.column_stack(margins))
    return {
        name: replace(fit, weight=float(weight))
        for (name, fit), weight in zip(fits.items(), weights, strict=True)
    }


def fit_threshold(config: CompositeConfig, pairs: ScoredPairs, rows: Ints) -> float:
    """Returns the threshold of a hierarchy that orders most pairs right.

    Tried are -inf (a weighted sum of shaped aspects), inf (the first part alone) and quantiles of
    the first part's scores. Of equal ones the highest is taken, which asks least.

    Args:
        config: settings of a hierarchy, with the fitted numbers of its parts.
        pairs: scored pairs.
        rows: pairs that are fitted on.
    """
    rule, fitted = config.rule, config.fitted
    assert isinstance(rule, Hierarchy)
    assert fitted is not None
    aspects = [name for name in config.parts if name != rule.first]
    z = {name: _scaled_texts(config, name, fit, pairs) for name, fit in fitted.parts.items()}
    first_N, first_weight = z[rule.first], part_weight(config, rule.first)
    aspects_AN = np.array([z[name] for name in aspects])
    weights_A = np.array([part_weight(config, name) for name in aspects])
    quantiles = np.linspace(0, 1, NUM_THRESHOLDS)
    tried = [-np.inf, *np.nanquantile(first_N[pairs.texts_of(rows)], quantiles), np.inf]
    accuracies: list[float] = []
    for threshold in tried:
        values_N = hierarchy(first_N, first_weight, aspects_AN, weights_A, float(threshold))
        accuracies.append(accuracy(pairs.margins(values_N)[rows]))
    best = max(accuracies)
    return float(max(t for t, share in zip(tried, accuracies, strict=True) if share == best))


def composite_values(config: CompositeConfig, pairs: ScoredPairs) -> Array:
    """Returns the scores of all texts by a composite whose parts answer from the record, `[N]`."""
    parts = {name: _RecordedPart(pairs, name) for name in config.parts}
    scores = asyncio.run(CompositeScorer(config, parts).score(pairs.items))
    values = [score.score for score in chain.from_iterable(scores)]
    return np.array([np.nan if value is None else value for value in values])


def accuracy(margins_P: Array) -> float:
    """Returns (wins + ties / 2) / n of the margins that are there; NaN where none is."""
    present = margins_P[np.isfinite(margins_P)]
    return float(wins(present).mean()) if len(present) else float("nan")


def with_parts(config: CompositeConfig, names: Sequence[str]) -> CompositeConfig:
    """Returns a composite of some of the parts, with the numbers that are fitted for them."""
    parts = {name: config.parts[name] for name in names}
    fitted = config.fitted
    if fitted is not None:
        fitted = replace(fitted, parts={name: fitted.parts[name] for name in names})
    return replace(config, parts=parts, fitted=fitted, quorum=min(config.quorum, len(parts)))


def with_fit(config: CompositeConfig, **numbers: object) -> CompositeConfig:
    """Returns a composite with some of its fitted numbers replaced."""
    assert config.fitted is not None
    fitted: CompositeFit = replace(config.fitted, **numbers)  # pyright: ignore[reportArgumentType]
    return replace(config, fitted=fitted)


def _scaled_texts(config: CompositeConfig, name: str, fit: PartFit, pairs: ScoredPairs) -> Array:
    """Returns a part's scores of all texts in the unit of the file, clipped, `[N]`."""
    groups = pairs.groups(pairs.values[name])
    scaled_groups = [scaled(group, config.scale, fit.mean, fit.deviation) for group in groups]
    values_N = np.concatenate(scaled_groups)
    clip = config.parts[name].clip
    return values_N if clip is None else np.clip(values_N, *clip)


class _RecordedPart:
    """A part that answers from recorded scores."""

    def __init__(self, pairs: ScoredPairs, name: str) -> None:
        keys = [text_id(prompt, response) for prompt, response in pairs.texts()]
        self.scores = dict(zip(keys, pairs.values[name].tolist(), strict=True))

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the recorded scores."""
        return tuple(map(self._item, items))

    def _item(self, item: Item) -> tuple[Score, ...]:
        assert isinstance(item, Chat)
        values = [self.scores[text_id(item.prompt, response)] for response in item.responses]
        return tuple(
            Score(error="no recorded score") if np.isnan(value) else scored(value)
            for value in values
        )
