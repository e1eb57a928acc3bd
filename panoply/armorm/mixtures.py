"""Fixed combinations of objectives: what a prompt-conditioned gate has to beat.

All are fitted on differences within pairs, d = r'(chosen) - r'(rejected), by the Bradley-Terry
loss; the same functions serve all sources together and each source alone. Simplex weights are
fitted as a convex problem: a softmax parametrization gets stuck and flatters the gate.

Differences may be an array, or anything that gives rows by slice (`Rows`): features of many pairs
are read from disk, chunk by chunk, so memory does not grow with the pairs.

Shapes: P pairs, O objectives, S strengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from panoply.measure.calibration import log_loss
from panoply.measure.metrics import accuracy
from panoply.types import Array

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths among which `fit_linear` usually chooses."""
MAX_COEFFICIENT = 1e3
"""Bound on v_i times the root mean square of d_i: separable data have no optimum."""
_GRADIENT = 1e-8
"""Largest projected gradient that counts as the optimum."""
_MAX_STARTS = 50
_CHUNK = 1 << 20
"""Numbers of `Rows` that are computed on at once."""
IN_MEMORY = 1 << 27
"""Numbers up to which `Rows` are read once and kept, 1 GiB; beyond, every step reads them anew."""


class Rows(Protocol):
    """Differences `[P, O]` that are read by slice, such as an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, O)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Returns some rows."""
        ...


class Mixture(NamedTuple):
    """A fixed score: scale * weights . r'."""

    weights: Array
    """[O], >= 0, sum 1"""
    scale: float


class Linear(NamedTuple):
    """An unconstrained score: coefficients . r'."""

    coefficients: Array
    """[O]"""
    strength: int
    """Index of the chosen strength."""


def fit_simplex(d_PO: ArrayLike, weights_P: ArrayLike | None = None) -> Mixture:
    """Fits v = argmin_{v >= 0} mean log(1 + exp(-d . v)), returned as v / sum(v) and sum(v).

    If no objective points the right way (v = 0), the weights are uniform and the scale is 0: as
    good as no score, and read as such.

    Args:
        d_PO: differences chosen - rejected of the debiased objectives.
        weights_P: optional weights of the pairs, >= 0.

    Raises:
        ValueError: no pairs, shapes that disagree, values that are not finite, weights below 0.
    """
    d = _checked(np.asarray(d_PO))
    v, _ = _minimize(d, _shares(weights_P, d.shape[0]), strength=0.0, lower=0.0)
    if not (scale := float(v.sum())):
        return Mixture(np.full(len(v), 1 / len(v)), 0.0)
    return Mixture(v / scale, scale)


def fit_linear(
    d_PO: Rows,
    strengths: Sequence[float],
    d_select: Rows,
    *,
    weights_P: ArrayLike | None = None,
    in_memory: int = IN_MEMORY,
) -> Linear:
    """Fits logistic regression without intercept, its strength chosen by log loss on `d_select`.

    v = argmin mean log(1 + exp(-d . v)) + alpha / 2 sum_i (v_i rms(d_i))^2, so that one strength
    means the same for objectives in any unit. The stronger one of equal strengths is taken. The
    mean and rms are weighted by `weights_P` where they are there.

    Raises:
        ValueError: as `fit_simplex`, or the strengths are not ascending and positive.
    """
    d, select = _checked(d_PO, in_memory), _checked(d_select, in_memory)
    alphas = np.asarray(strengths, np.float64)
    if alphas.ndim != 1 or not len(alphas) or alphas[0] <= 0 or (np.diff(alphas) <= 0).any():
        raise ValueError(f"strengths are {strengths!r}; they must be ascending and positive")
    shares = _shares(weights_P, d.shape[0])
    path: list[Array] = []
    start = np.zeros(d.shape[1])
    for alpha in alphas[::-1]:  # the strong ones are quick, and near the next
        v, start = _minimize(d, shares, alpha, lower=-np.inf, start=start)
        path.insert(0, v)
    losses: list[float] = []
    for v in path:
        margins = [x @ v for _, x in _chunks(select)]
        losses.append(log_loss(np.concatenate(margins)))
    best = max(range(len(path)), key=lambda i: (-losses[i], i))
    return Linear(path[best], best)


def _shares(weights_P: ArrayLike | None, num: int) -> Array:
    """Returns the weights of `num` pairs with sum 1, all alike where there are none."""
    weights = np.ones(num) if weights_P is None else np.asarray(weights_P, np.float64)
    if weights.shape != (num,):
        raise ValueError(f"weights {weights.shape!r} do not match the {num} pairs")
    if not ((weights >= 0).all() and 0 < weights.sum() < np.inf):
        raise ValueError("weights must be finite and >= 0, and not all of them 0")
    return weights / weights.sum()


def best_single(d_PO: ArrayLike) -> int:
    """Returns the objective that alone is right most often, the first one of equals."""
    return int(np.argmax([accuracy(column) for column in _checked(np.asarray(d_PO))[:].T]))


def _minimize(
    d: Rows, weights: Array, strength: float, lower: float, start: Array | None = None
) -> tuple[Array, Array]:
    """Returns argmin_{v >= lower} weights . log(1 + exp(-d v)) + strength / 2 |v rms(d)|^2.

    Beside it the same in units of rms(d), where a neighboring problem may start.
    """
    rms = np.sqrt(sum((weights[at] @ x**2 for at, x in _chunks(d)), np.zeros(d.shape[1])))
    unit = np.divide(1, rms, out=np.zeros_like(rms), where=rms > 0)

    def loss(u: Array) -> tuple[float, Array]:
        v, value, slope = unit * u, strength / 2 * float(u @ u), np.zeros_like(u)
        for at, x in _chunks(d):
            margins = x @ v
            value += float(weights[at] @ np.logaddexp(0, -margins))
            slope -= x.T @ (weights[at] * expit(-margins))
        return value, strength * u + unit * slope

    gradient = max(_GRADIENT, strength * 1e-6)  # a penalized optimum is no sharper than that
    bounds = [(max(lower, -MAX_COEFFICIENT), MAX_COEFFICIENT)] * len(unit)
    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": gradient / 10}
    u = np.zeros(len(unit)) if start is None else start
    for _ in range(_MAX_STARTS):  # at a bound the search can stall short of the optimum
        u = minimize(loss, u, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        inside = np.clip(u - loss(u)[1], bounds[0][0], MAX_COEFFICIENT)
        if np.abs(inside - u).max() <= gradient:
            break
    return unit * u, u


def _chunks(d: Rows) -> Iterator[tuple[slice, Array]]:
    """Yields slices and their rows in float64."""
    size = max(1, _CHUNK // d.shape[1])
    for first in range(0, d.shape[0], size):
        at = slice(first, first + size)
        yield at, np.asarray(d[at], np.float64)


def _checked(d_PO: Rows, in_memory: int = IN_MEMORY) -> Rows:
    if len(d_PO.shape) != 2 or 0 in d_PO.shape:
        raise ValueError(
            f"differences have shape {d_PO.shape!r}; they must be [P, O], none of them 0"
        )
    if not all(np.isfinite(x).all() for _, x in _chunks(d_PO)):
        raise ValueError("differences must be finite; leave out pairs and objectives that are not")
    fits = d_PO.shape[0] * d_PO.shape[1] <= in_memory
    return np.asarray(d_PO[:], np.float64) if fits else d_PO
