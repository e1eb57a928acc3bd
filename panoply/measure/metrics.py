"""Metrics of scores on pairs and of predicted ratings.

A tie counts as half a win. Length is in characters: a scorer that follows length alone is right on
all pairs whose chosen response is longer and wrong on all others, so the mean of the two strata is
the accuracy that length cannot raise. Missing margins (NaN) are left out and counted, never read
as 0; what is not defined is NaN. Every result is a float, a list of floats, or a dict of them.

Shapes: N rows, P pairs, B draws (or 1, the rows as they are). A margin is score(chosen) -
score(rejected), a gap is characters(chosen) - characters(rejected).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from panoply.measure.calibration import ece, ece_floor, log_loss
from panoply.measure.intervals import (
    DRAWS,
    percentiles,
    rates,
    resampled_spearman,
    resampled_sums,
    strata,
    wins,
)
from panoply.types import Array

Metrics: TypeAlias = dict[str, float | list[float]]

COUNTS = ("n", "missing", "equal_length")
"""The entries of `pair_metrics` that are counts: `macro` adds them up."""


def accuracy(margins_P: ArrayLike) -> float:
    """Returns (wins + ties / 2) / n over the margins that are not missing."""
    margins = np.asarray(margins_P, np.float64)
    won = wins(margins[~np.isnan(margins)])
    return float(won.mean()) if len(won) else float("nan")


def pair_metrics(
    margins_P: ArrayLike, gaps_P: ArrayLike, groups_P: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Metrics:
    """Returns all metrics of one scorer on pairs.

    Args:
        margins_P: margins in units of log odds (after the scorer's own scale), NaN where missing.
        gaps_P: length of the chosen minus length of the rejected response, in characters.
        groups_P: what is resampled together for the intervals, such as the split key.
        draws: draws of the intervals.
        seed: of the intervals and of `ece_floor`.

    Returns:
        `accuracy` with `ci95`; `accuracy_chosen_longer`, `accuracy_chosen_shorter` and their mean
        `accuracy_length_balanced` with `ci95_length_balanced`; `ties` (a share), `log_loss`,
        `ece`, `ece_floor`; the counts `n`, `missing` and `equal_length` (left out of the strata).

    Raises:
        ValueError: the arguments differ in length.
    """
    margins, gaps = np.asarray(margins_P, np.float64), np.asarray(gaps_P, np.float64)
    groups = np.asarray(groups_P)
    if not len(margins) == len(gaps) == len(groups):
        raise ValueError(f"lengths differ: {len(margins)=}, {len(gaps)=}, {len(groups)=}")
    scored = ~np.isnan(margins)
    margins, gaps, groups = margins[scored], gaps[scored], groups[scored]
    terms = np.column_stack([wins(margins), np.ones_like(margins), *strata(margins, gaps)])
    drawn = resampled_sums(terms, groups, draws, seed)
    overall, longer, shorter = rates(terms.sum(0)[None])[0]
    drawn_overall, drawn_longer, drawn_shorter = rates(drawn).T
    return {
        "accuracy": float(overall),
        "ci95": percentiles(drawn_overall),
        "accuracy_length_balanced": float((longer + shorter) / 2),
        "ci95_length_balanced": percentiles((drawn_longer + drawn_shorter) / 2),
        "accuracy_chosen_longer": float(longer),
        "accuracy_chosen_shorter": float(shorter),
        "ties": float((margins == 0).mean()) if len(margins) else float("nan"),
        "log_loss": log_loss(margins),
        "ece": ece(margins),
        "ece_floor": ece_floor(margins, seed=seed),
        "n": float(len(margins)),
        "missing": float((~scored).sum()),
        "equal_length": float((gaps == 0).sum()),
    }


def macro(per_source: Mapping[str, Metrics]) -> dict[str, float]:
    """Returns the unweighted mean over sources of each metric, and the sums of the counts.

    A source in which a metric is not defined (NaN) does not enter its mean. Intervals are not
    averaged: `macro_interval` resamples the sources together.
    """
    names = dict.fromkeys(chain(*per_source.values()))
    result: dict[str, float] = {}
    for name in names:
        each = [metrics.get(name) for metrics in per_source.values()]
        values = [value for value in each if isinstance(value, float)]
        defined = [value for value in values if not np.isnan(value)]
        if name in COUNTS:
            result[name] = sum(defined)
        elif values:
            result[name] = sum(defined) / len(defined) if defined else float("nan")
    return result


def unit_ranks(values_N: ArrayLike) -> Array:
    """Returns the ranks (ties share their mean) shifted to mean 0 and scaled to norm 1.

    Spearman's rho is the inner product of two of these. Constant values give NaN.
    """
    values = np.asarray(values_N, np.float64)
    if len(values) == 0 or is_constant(values):
        return np.full(len(values), np.nan)
    from scipy.stats import rankdata  # loads half a second, which a server would wait for

    ranks = rankdata(values)
    ranks -= ranks.mean()
    return ranks / np.sqrt(ranks @ ranks)


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Returns Spearman's rank correlation; NaN where either side is constant or empty."""
    x, y = unit_ranks(x_N), unit_ranks(y_N)
    return float(np.clip(x @ y, -1, 1)) if len(x) else float("nan")


def largest_relative_error(values: ArrayLike, expected: ArrayLike) -> float:
    """Returns the largest |values - expected| / |expected| over vectors along the last axis."""
    a, b = np.asarray(values, np.float64), np.asarray(expected, np.float64)
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def is_constant(values_N: Array) -> bool:
    """Returns whether the values are equal up to rounding, or fewer than two."""
    return len(values_N) < 2 or bool(np.ptp(values_N) <= 1e-12 * np.abs(values_N).max())


def regression_metrics(
    predicted_N: ArrayLike,
    rated_N: ArrayLike,
    lengths_N: ArrayLike,
    groups_N: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
) -> Metrics:
    """Returns how well one objective is predicted on the rows that are rated (not NaN).

    Returns:
        `pearson`, `spearman` and `r2` = 1 - SSE / SST about the mean of these rows, each with its
        interval `..._ci95`; `length_spearman`, the rank correlation of length alone with the
        rating; the counts `n` and `missing` (rated rows without a prediction). A correlation with
        a constant is NaN, and so is r2 of a constant rating.
    """
    predicted, rated = np.asarray(predicted_N, np.float64), np.asarray(rated_N, np.float64)
    missing = np.isnan(predicted) & ~np.isnan(rated)
    both = ~np.isnan(predicted) & ~np.isnan(rated)
    p, y, groups = predicted[both], rated[both], np.asarray(groups_N)[both]
    lengths = np.asarray(lengths_N, np.float64)[both]
    result: Metrics = {"n": float(len(y)), "missing": float(missing.sum())}
    result["length_spearman"] = spearman(lengths, y)
    terms = _moments(p, y)
    pearson, r2 = _pearson_r2(terms.sum(0)[None])
    result |= {"pearson": float(pearson[0]), "spearman": spearman(p, y), "r2": float(r2[0])}
    drawn_pearson, drawn_r2 = _pearson_r2(resampled_sums(terms, groups, draws, seed))
    return result | {
        "pearson_ci95": percentiles(drawn_pearson),
        "spearman_ci95": percentiles(resampled_spearman(p, y, groups, draws, seed)),
        "r2_ci95": percentiles(drawn_r2),
    }


def _moments(p: Array, y: Array) -> Array:
    """Returns per row what Pearson and R2 are sums of, about the means so as not to cancel."""
    error, p, y = p - y, p - p.sum() / max(len(p), 1), y - y.sum() / max(len(y), 1)
    # A constant has no spread at all, not that of its rounding error.
    p = np.zeros_like(p) if is_constant(p) else p
    y = np.zeros_like(y) if is_constant(y) else y
    return np.column_stack([np.ones_like(y), p, y, p * p, y * y, p * y, error * error])


def _pearson_r2(sums_B7: Array) -> tuple[Array, Array]:
    n, p, y, pp, yy, py, sse = sums_B7.T
    n = np.where(n > 0, n, np.nan)
    spread_p, spread_y = pp - p * p / n, yy - y * y / n
    spread_p = np.where(spread_p > 1e-12 * pp, spread_p, np.nan)
    spread_y = np.where(spread_y > 1e-12 * yy, spread_y, np.nan)
    return (py - p * y / n) / np.sqrt(spread_p * spread_y), 1 - sse / spread_y
