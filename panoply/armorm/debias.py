"""ArmoRM's length decorrelation: each objective gives up its rank correlation with r_v.

r_v is the predicted length (or verbosity) of a response. The released grid of penalties stops at
.95, so steep objectives keep their bias, and negative relations are left alone; here lambda is
found by bisection, in any unit and of either sign.

Shapes: N rows of the reference sample, O objectives, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panoply.measure.metrics import is_constant, spearman, unit_ranks
from panoply.types import Array

_CLOSE = 1e-4
"""A residual correlation below this is 0 for our purpose: at 20,000 rows chance gives 0.007."""
_MAX_HALVINGS = 60


@dataclass(frozen=True)
class Penalties:
    """lambda of r'_i = r_i - lambda_i r_v, and the rank correlation that it leaves."""

    penalty: Array
    """[O], lambda"""
    residual: Array
    """[O], Spearman(r'_i, r_v) on the reference sample; NaN where r'_i or r_v is constant"""
    constant: NDArray[np.bool_]
    """[O], whether r'_i is constant: r_i is, or it is a linear function of r_v (as r_v itself)"""


def length_penalties(r_NO: ArrayLike, r_v_N: ArrayLike) -> Penalties:
    """Returns lambda_i such that Spearman(r_i - lambda_i r_v, r_v) = 0 on the reference sample.

    The correlation falls monotonically in lambda. From the least-squares slope the interval widens
    in units of sd(r_i) / sd(r_v) until it brackets 0, and is then halved. Where the correlation
    jumps over 0 (few distinct values), the nearer side is taken; `residual` tells what is left.
    A constant r_i, or a constant r_v, gets lambda 0; a linear function of r_v gets its slope.

    Raises:
        ValueError: the shapes disagree, or a value is not finite.
    """
    r, r_v = np.asarray(r_NO, np.float64), np.asarray(r_v_N, np.float64)
    if r.ndim != 2 or r_v.shape != r.shape[:1]:
        raise ValueError(f"values {r.shape!r} and r_v {r_v.shape!r} must be [N, O] and [N]")
    if not (np.isfinite(r).all() and np.isfinite(r_v).all()):
        raise ValueError("objective values must be finite; leave out objectives without a fit")
    constant = np.array([is_constant(column) for column in r.T], dtype=bool)
    penalty, residual = np.zeros(r.shape[1]), np.full(r.shape[1], np.nan)
    if is_constant(r_v):
        return Penalties(penalty, residual, constant)
    centered_v, ranks_v = r_v - r_v.mean(), unit_ranks(r_v)
    for i in np.flatnonzero(~constant):
        centered = r[:, i] - r[:, i].mean()
        slope = float(centered @ centered_v / (centered_v @ centered_v))
        left = centered - slope * centered_v
        if left @ left <= 1e-20 * (centered @ centered):
            penalty[i], constant[i] = slope, True
            continue
        unit = float(np.sqrt((left @ left) / (centered_v @ centered_v)))
        offset, residual[i] = _root(left, centered_v, ranks_v, unit)
        penalty[i] = slope + offset
    return Penalties(penalty, residual, constant)


def remove_length(r_NO: ArrayLike, r_v_N: ArrayLike, penalty_O: ArrayLike) -> Array:
    """Returns r'_i = r_i - lambda_i r_v, as [N, O]."""
    r_v, penalty = np.asarray(r_v_N, np.float64), np.asarray(penalty_O, np.float64)
    return np.asarray(r_NO, np.float64) - r_v[:, None] * penalty


def length_spearman(r_NO: ArrayLike, r_v_N: ArrayLike, sources_N: ArrayLike | None = None) -> Array:
    """Returns Spearman(r_i, r_v) as [O]: over all rows, or within sources if `sources_N` is given.

    Within sources it is the mean over sources, weighted by their rows. A source in which either
    side is constant does not count; NaN where none counts.
    """
    r, r_v = np.asarray(r_NO, np.float64), np.asarray(r_v_N, np.float64)
    sources = np.zeros(len(r_v)) if sources_N is None else np.asarray(sources_N)
    total, count = np.zeros(r.shape[1]), np.zeros(r.shape[1])
    for source in np.unique(sources):
        rows = sources == source
        rho = np.array([spearman(column, r_v[rows]) for column in r[rows].T])
        defined = ~np.isnan(rho)
        total[defined] += rows.sum() * rho[defined]
        count[defined] += rows.sum()
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def difference_spearman(d_PO: ArrayLike, d_v_P: ArrayLike) -> Array:
    """Returns Spearman as [O] between differences within pairs of r_i and of r_v.

    Both orders of each pair are counted, so that it does not matter which one was chosen.
    """
    d, d_v = np.asarray(d_PO, np.float64), np.asarray(d_v_P, np.float64)
    return length_spearman(np.concatenate([d, -d]), np.concatenate([d_v, -d_v]))


def _root(left: Array, centered_v: Array, ranks_v: Array, unit: float) -> tuple[float, float]:
    """Returns the offset to the least-squares slope and the correlation that it leaves."""

    def correlation(offset: float) -> float:
        ranks = unit_ranks(left - offset * centered_v)
        return 0.0 if np.isnan(ranks[0]) else float(ranks @ ranks_v)

    best = (0.0, correlation(0.0))
    if abs(best[1]) <= _CLOSE:
        return best
    # A positive correlation needs a larger lambda. `inside` keeps the sign of the start.
    sign = float(np.sign(best[1]))
    inside, outside = 0.0, sign * unit * 0.05
    while (rho := correlation(outside)) * sign > 0:
        inside, outside = outside, 2 * outside
    best = min(best, (outside, rho), key=_remaining)
    for _ in range(_MAX_HALVINGS):
        if abs(best[1]) <= _CLOSE or abs(outside - inside) <= 1e-12 * abs(outside):
            break
        middle = (inside + outside) / 2
        rho = correlation(middle)
        best = min(best, (middle, rho), key=_remaining)
        inside, outside = (middle, outside) if rho * sign > 0 else (inside, middle)
    return best


def _remaining(candidate: tuple[float, float]) -> float:
    return abs(candidate[1])
