"""Offline half of BayesianRouter (arXiv 2510.02850): a prior for Thompson.

Differences from its code: contexts are given features instead of an encoder trained along with the
arms' vectors, so the fit is convex; and the vectors are used, where the released router sets the
prior to 0.

Shapes: N judged contexts, K arms, D size of a context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from panoply.types import Array


def fit_router(contexts_ND: ArrayLike, right_NK: ArrayLike, *, strength: float = 1e-3) -> Array:
    """Returns e_k `[K, D]` of unit length: the mean of Thompson's prior.

        argmin_e  1/M sum_n sum_{i, j: v_ni > v_nj} (v_ni - v_nj) log(1 + exp(-h_n . (e_i - e_j)))
                  + strength / 2 sum_k |e_k|^2

    M is the sum of these differences: where v is 1 or 0, as in the paper, the number of triples
    with i right and j wrong. Returned is e_k / |e_k| of the optimum; 0 for an arm without verdicts.

    Args:
        contexts_ND: h_n.
        right_NK: v, 1 where the arm was right and 0 where it was wrong, or anything between, such
            as `panoply.laser.rewards.verifier_auc`; NaN where it is not known.
        strength: weight of the penalty.

    Raises:
        ValueError: shapes disagree, contexts are not finite, or strength is not positive.
    """
    h, right = np.asarray(contexts_ND, np.float64), np.asarray(right_NK, np.float64)
    if h.ndim != 2 or right.ndim != 2 or len(h) != len(right):
        raise ValueError(
            f"contexts {h.shape!r} and verdicts {right.shape!r} must be [N, D], [N, K]"
        )
    if not np.isfinite(h).all() or not strength > 0:
        raise ValueError(f"contexts must be finite and strength positive, got {strength!r}")
    ahead_NKK = np.maximum(np.nan_to_num(right[:, :, None] - right[:, None, :]), 0)
    weight = ahead_NKK / (float(ahead_NKK.sum()) or 1.0)

    def loss(flat: Array) -> tuple[float, Array]:
        e = flat.reshape(right.shape[1], h.shape[1])
        score = h @ e.T
        margin = score[:, :, None] - score[:, None, :]
        pull = weight * expit(-margin)
        slope = strength * e - (pull.sum(2) - pull.sum(1)).T @ h
        value = float((weight * np.logaddexp(0, -margin)).sum()) + strength / 2 * float(flat @ flat)
        return value, slope.ravel()

    start = np.zeros(right.shape[1] * h.shape[1])
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    e_KD = optimum.x.reshape(right.shape[1], h.shape[1])
    length = np.linalg.norm(e_KD, axis=1, keepdims=True)
    return np.divide(e_KD, length, out=np.zeros_like(e_KD), where=length > 0)
