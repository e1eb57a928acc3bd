"""Intervals by resampling groups: rows of one group (one prompt) are never independent evidence.

A statistic that is a function of sums over rows is resampled from the sums of each group, so the
cost of a draw does not depend on how many metrics are read from it, nor memory on the draws.

Shapes: N rows, P pairs, G groups, M terms to be summed, B draws. A margin is score(chosen) -
score(rejected), a gap is characters(chosen) - characters(rejected).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from panoply.types import Array, Ints

DRAWS = 1000
FEWEST_GROUPS = 20
"""Groups below which resampling says nothing: an interval of a handful is far too narrow."""
_CHUNK = 1 << 20
"""Numbers held at once while resampling."""


def group_index(groups_N: ArrayLike) -> tuple[Ints, int]:
    """Returns each row's group as 0 .. G-1, and G."""
    names, index = np.unique(np.asarray(groups_N), return_inverse=True)
    return index.reshape(-1), len(names)


def resampled_counts(num_groups: int, width: int, draws: int, seed: int) -> Iterator[Array]:
    """Yields chunks [b, G] of how often each draw takes each group; G groups with replacement.

    Chunks are small enough that an array [b, width] is no burden.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(width, num_groups))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        taken = rng.integers(num_groups, size=(size, num_groups))
        taken += num_groups * np.arange(size)[:, None]
        counts = np.bincount(taken.ravel(), minlength=size * num_groups)
        yield counts.reshape(size, num_groups).astype(np.float64)


def resampled_sums(
    terms_NM: Array, groups_N: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Array:
    """Returns the sums [B, M] of the terms over each draw of groups.

    With fewer than FEWEST_GROUPS groups all sums are NaN.
    """
    index, num_groups = group_index(groups_N)
    if num_groups < FEWEST_GROUPS:
        return np.full((draws, terms_NM.shape[1]), np.nan)
    columns = [np.bincount(index, weights=term, minlength=num_groups) for term in terms_NM.T]
    sums_GM = np.stack(columns, axis=1)
    chunks = resampled_counts(num_groups, num_groups, draws, seed)
    return np.concatenate([counts @ sums_GM for counts in chunks])


def resampled_spearman(
    x_N: ArrayLike, y_N: ArrayLike, groups_N: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Array:
    """Returns Spearman's rho [B] of each draw of groups, ranked anew within the draw.

    NaN with fewer than FEWEST_GROUPS groups, and in draws where either side is constant.
    """
    index, num_groups = group_index(groups_N)
    if num_groups < FEWEST_GROUPS:
        return np.full(draws, np.nan)
    x_order = np.unique(np.asarray(x_N, np.float64), return_inverse=True)[1]
    y_order = np.unique(np.asarray(y_N, np.float64), return_inverse=True)[1]
    drawn: list[Array] = []
    for counts in resampled_counts(num_groups, len(index), draws, seed):
        weights_bN = counts[:, index]
        x, y = _weighted_ranks(x_order, weights_bN), _weighted_ranks(y_order, weights_bN)
        x_square = np.einsum("bn,bn,bn->b", weights_bN, x, x)
        norm = np.sqrt(x_square * np.einsum("bn,bn,bn->b", weights_bN, y, y))
        agree = np.einsum("bn,bn,bn->b", weights_bN, x, y)
        drawn.append(np.divide(agree, norm, out=np.full_like(norm, np.nan), where=norm > 0))
    return np.concatenate(drawn)


def percentiles(values_B: ArrayLike) -> list[float]:
    """Returns [2.5 %, 97.5 %] of the draws in which the statistic is defined (not NaN)."""
    values = np.asarray(values_B, np.float64)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return [float("nan"), float("nan")]
    return [float(q) for q in np.percentile(defined, (2.5, 97.5))]


def mean_interval(values_N: ArrayLike) -> list[float]:
    """Returns the 95 % interval of a mean over rows that are resampled; NaN rows count nowhere."""
    values = np.asarray(values_N, np.float64)
    finite = np.isfinite(values)
    terms_N2 = np.stack([np.where(finite, values, 0.0), finite * 1.0], axis=1)
    total_B, count_B = resampled_sums(terms_N2, np.arange(len(values))).T
    mean_B = np.divide(total_B, count_B, out=np.full(len(total_B), np.nan), where=count_B > 0)
    return percentiles(mean_B)


def _weighted_ranks(order_N: Ints, weights_bN: Array) -> Array:
    """Returns the centered mid-ranks of values whose order is given, each counted weight times."""
    by_value = np.argsort(order_N, kind="stable")
    starts = np.flatnonzero(np.diff(order_N[by_value], prepend=-1))
    at_value = np.add.reduceat(weights_bN[:, by_value], starts, axis=1)
    up_to = np.cumsum(at_value, axis=1)
    return (up_to - at_value / 2 - up_to[:, -1:] / 2)[:, order_N]


def wins(margins_P: Array) -> Array:
    """Returns 1 for a win, 1/2 for a tie, 0 for a loss."""
    return (np.sign(margins_P) + 1) / 2


def strata(margins_P: Array, gaps_P: Array) -> list[Array]:
    """Returns per pair: won, counted where the chosen response is longer; the same for shorter."""
    won, longer, shorter = wins(margins_P), gaps_P > 0, gaps_P < 0
    return [won * longer, longer.astype(np.float64), won * shorter, shorter.astype(np.float64)]


def rates(sums_BM: Array) -> Array:
    """Returns wins over counts [B, M/2] of sums of (wins, count); NaN where the count is 0."""
    won, count = sums_BM[:, 0::2], sums_BM[:, 1::2]
    return np.divide(won, count, out=np.full_like(won, np.nan), where=count > 0)


def macro_interval(
    margins_P: ArrayLike,
    gaps_P: ArrayLike,
    sources_P: ArrayLike,
    groups_P: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Returns `value` and `ci95` of the length-balanced accuracy, averaged over sources."""
    margins = np.asarray(margins_P, np.float64)
    scored = ~np.isnan(margins)
    columns = (margins, gaps_P, sources_P, groups_P)
    margins, gaps, sources, groups = [np.asarray(column)[scored] for column in columns]
    total, drawn = _macro_draws(strata(margins, gaps), sources, groups, draws, seed)
    return {"value": total, "ci95": percentiles(drawn), "n": float(len(margins))}


def paired_interval(
    margins_a_P: ArrayLike,
    margins_b_P: ArrayLike,
    gaps_P: ArrayLike,
    sources_P: ArrayLike,
    groups_P: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Returns `value` and `ci95` of how much scorer a beats scorer b on the same pairs.

    The value is the difference in length-balanced accuracy, averaged over sources. Groups are
    resampled for both scorers at once, which keeps what the two have in common out of the
    interval. Pairs that either did not score are left out of both.
    """
    a, b = np.asarray(margins_a_P, np.float64), np.asarray(margins_b_P, np.float64)
    scored = ~(np.isnan(a) | np.isnan(b))
    columns = (a, b, gaps_P, sources_P, groups_P)
    a, b, gaps, sources, groups = [np.asarray(column)[scored] for column in columns]
    # A difference of means over the same pairs is the mean of the differences.
    won_a, won_b = strata(a, gaps), strata(b, gaps)
    terms = [won_a[0] - won_b[0], won_a[1], won_a[2] - won_b[2], won_a[3]]
    total, drawn = _macro_draws(terms, sources, groups, draws, seed)
    return {"value": total, "ci95": percentiles(drawn), "n": float(len(a))}


def _macro_draws(
    terms: Sequence[Array], sources: ArrayLike, groups: ArrayLike, draws: int, seed: int
) -> tuple[float, Array]:
    """Returns the mean over sources of the length-balanced rate: on the rows, and on each draw.

    Sources without pairs of both kinds do not enter; in a draw, the source counts if it has both.
    """
    one_hot = np.unique(sources)[:, None] == sources
    if not len(one_hot):
        return float("nan"), np.full(draws, np.nan)
    columns = np.column_stack([term * of_source for of_source in one_hot for term in terms])
    total = _mean_balanced(columns.sum(0)[None])
    return float(total[0]), _mean_balanced(resampled_sums(columns, groups, draws, seed))


def _mean_balanced(sums_BM: Array) -> Array:
    balanced = rates(sums_BM).reshape(len(sums_BM), -1, 2).mean(2)
    defined = ~np.isnan(balanced)
    count = defined.sum(1).astype(np.float64)
    total = np.where(defined, balanced, 0).sum(1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
