"""Weights of margins that are never negative: a Bradley-Terry model on several scorers at once.

Shapes: P pairs, K margins. A margin is score(chosen) - score(rejected).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from panoply.types import Array

RIDGE = 1e-3
"""Penalty of squared weights, in units of each margin's root mean square: separable pairs, which
have no optimum without it, are fitted with finite weights."""


def fit_weights(margins_PK: ArrayLike) -> Array:
    """Returns w `[K]` >= 0 that minimizes the log loss of margins.

    w = argmin_{w >= 0}  mean log(1 + exp(-m . w)) + RIDGE / 2 sum_k (rms_k w_k)^2

    m . w are log odds that the chosen response is better (Bradley-Terry, 1952). There is no
    constant term, so that the order in which two responses stand tells nothing. A margin that
    points the wrong way beside the others has weight 0. The problem is convex. Pairs that miss a
    margin (NaN) are left out.

    Raises:
        ValueError: no pair has all margins, or one of them is infinite.
    """
    margins = np.asarray(margins_PK, np.float64)
    margins = margins[~np.isnan(margins).any(1)]
    if not len(margins):
        raise ValueError("no pair has a margin by every part: there is nothing to fit weights on")
    if not np.isfinite(margins).all():
        raise ValueError("a margin is infinite; scores must be finite, or NaN where missing")
    rms_K = np.sqrt((margins**2).mean(0))
    unit_PK = np.divide(margins, rms_K, out=np.zeros_like(margins), where=rms_K > 0)

    def loss(weights_K: Array) -> tuple[float, Array]:
        log_odds = unit_PK @ weights_K
        value = np.logaddexp(0, -log_odds).mean() + RIDGE / 2 * (weights_K**2).sum()
        slope = RIDGE * weights_K - unit_PK.T @ expit(-log_odds) / len(unit_PK)
        return float(value), slope

    start = np.zeros(margins.shape[1])
    bounds = [(0, None)] * len(start)
    solution = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B")
    fitted = np.asarray(solution.x, np.float64)
    return np.divide(fitted, rms_K, out=np.zeros_like(fitted), where=rms_K > 0)
