"""Fixed combinations of objectives: what a prompt-conditioned gate has to beat.

All are fitted on differences within pairs, d = r'(chosen) - r'(rejected), by the Bradley-Terry
loss; the same functions serve all sources together and each source alone. Simplex weights are
fitted as a convex problem: a softmax parametrization gets stuck and flatters the gate.

Shapes: P pairs, O objectives, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from panoply.measure.calibration import log_loss
from panoply.measure.metrics import accuracy

Array: TypeAlias = NDArray[np.float64]

MAX_COEFFICIENT = 1e3
"""Bound on v_i times the root mean square of d_i: separable data have no optimum."""
_GRADIENT = 1e-8
"""Largest projected gradient that counts as the optimum."""
_MAX_STARTS = 50


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
    d = _checked(d_PO)
    weights = np.ones(len(d)) if weights_P is None else np.asarray(weights_P, np.float64)
    if weights.shape != d.shape[:1]:
        raise ValueError(f"weights {weights.shape!r} do not match the {len(d)} pairs")
    if not ((weights >= 0).all() and 0 < weights.sum() < np.inf):
        raise ValueError("weights must be finite and >= 0, and not all of them 0")
    v = _minimize(d, weights / weights.sum(), strength=0.0, lower=0.0)
    if not (scale := float(v.sum())):
        return Mixture(np.full(len(v), 1 / len(v)), 0.0)
    return Mixture(v / scale, scale)


def fit_linear(d_PO: ArrayLike, strengths: Sequence[float], d_select: ArrayLike) -> Linear:
    """Fits logistic regression without intercept, its strength chosen by log loss on `d_select`.

    v = argmin mean log(1 + exp(-d . v)) + alpha / 2 sum_i (v_i rms(d_i))^2, so that one strength
    means the same for objectives in any unit. The stronger one of equal strengths is taken.

    Raises:
        ValueError: as `fit_simplex`, or the strengths are not ascending and positive.
    """
    d, select = _checked(d_PO), _checked(d_select)
    alphas = np.asarray(strengths, np.float64)
    if alphas.ndim != 1 or not len(alphas) or alphas[0] <= 0 or (np.diff(alphas) <= 0).any():
        raise ValueError(f"strengths are {strengths!r}; they must be ascending and positive")
    even = np.full(len(d), 1 / len(d))
    path = [_minimize(d, even, alpha, lower=-np.inf) for alpha in alphas]
    losses = [log_loss(select @ v) for v in path]
    best = max(range(len(path)), key=lambda i: (-losses[i], i))
    return Linear(path[best], best)


def best_single(d_PO: ArrayLike) -> int:
    """Returns the objective that alone is right most often, the first one of equals."""
    return int(np.argmax([accuracy(column) for column in _checked(d_PO).T]))


def _minimize(d: Array, weights: Array, strength: float, lower: float) -> Array:
    """Returns argmin_{v >= lower} weights . log(1 + exp(-d v)) + strength / 2 |v rms(d)|^2."""
    rms = np.sqrt(weights @ d**2)
    z = np.divide(d, rms, out=np.zeros_like(d), where=rms > 0)

    def loss(u: Array) -> tuple[float, Array]:
        margins = z @ u
        value = weights @ np.logaddexp(0, -margins) + strength / 2 * (u @ u)
        return float(value), strength * u - z.T @ (weights * expit(-margins))

    bounds = [(max(lower, -MAX_COEFFICIENT), MAX_COEFFICIENT)] * d.shape[1]
    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": _GRADIENT / 10}
    u = np.zeros(d.shape[1])
    for _ in range(_MAX_STARTS):  # at a bound the search can stall short of the optimum
        u = minimize(loss, u, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        inside = np.clip(u - loss(u)[1], bounds[0][0], MAX_COEFFICIENT)
        if np.abs(inside - u).max() <= _GRADIENT:
            break
    return np.divide(u, rms, out=np.zeros_like(rms), where=rms > 0)


def _checked(d_PO: ArrayLike) -> Array:
    d = np.asarray(d_PO, np.float64)
    if d.ndim != 2 or 0 in d.shape:
        raise ValueError(f"differences have shape {d.shape!r}; they must be [P, O], none of them 0")
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite; leave out pairs and objectives that are not")
    return d
