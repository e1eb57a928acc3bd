"""Raters of the planted world: each source has attributes, a scale and noise of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from panoply.types import Array

MISSING_SHARE = 0.15
"""Share of the scores of a rated row that are null although its source rates the objective."""


class RatingSource(NamedTuple):
    """Raters of `attributes` on the scale low, low + step, ..., high; noise in units of [0, 1]."""

    low: float
    high: float
    step: float
    noise: float
    attributes: tuple[str, ...]


RATING_SOURCES: dict[str, RatingSource] = {
    "helpline": RatingSource(0, 4, 1, 0.20, ("on_topic", "complete", "polite", "complies")),
    "editors": RatingSource(
        1, 10, 1, 0.22, ("concise", "varied", "assured", "stepwise", "on_topic")
    ),
    "guard": RatingSource(0, 1, 1, 0.15, ("refuses", "complies", "hedged")),
    "crowd": RatingSource(
        1, 5, 0.5, 0.22, ("polite", "hedged", "stepwise", "complete", "assured", "refuses")
    ),
}


def rated_objectives() -> Iterator[tuple[str, RatingSource, str]]:
    """Yields each objective with its source and the attribute that it rates."""
    for name, source in RATING_SOURCES.items():
        for attribute in source.attributes:
            yield f"{name}-{attribute}", source, attribute


def rate(rng: np.random.Generator, source: RatingSource, value: Array) -> Array:
    """Returns attribute values in [0, 1] as the source rates them: noisy, rounded, raw scale."""
    noisy = np.clip(value + source.noise * rng.standard_normal(value.shape), 0.0, 1.0)
    steps = np.round(noisy * (source.high - source.low) / source.step)
    rated = source.low + source.step * steps
    missing = rng.random(rated.shape) < MISSING_SHARE
    # A row without any score would be no rating: it keeps one objective, drawn at random.
    kept = np.arange(rated.shape[1]) == rng.integers(rated.shape[1], size=(len(rated), 1))
    missing &= ~(kept & missing.all(axis=1, keepdims=True))
    return np.where(missing, np.nan, rated)
