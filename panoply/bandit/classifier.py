"""Classifier from a prompt to the arm that suits it: LASeR's "classifier selection" (2410.01735).

Shapes: N judged prompts, B prompts, K arms, D size of a context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression

from panoply.types import Ints

Classifier: TypeAlias = Callable[[ArrayLike], Ints]
"""From contexts `[B, D]` to arms `[B]`."""


def fit_classifier(
    contexts_ND: ArrayLike, verifier_auc_NK: ArrayLike, *, strength: float = 1e-3
) -> Classifier:
    """Returns a logistic regression from a context to the arm that did best there.

        argmin  mean_n CE(best arm of n, softmax(W h_n + b)) + strength / 2 |W|^2

    Arms that did best together share a prompt evenly. A prompt on which all arms did alike is left
    out. An arm that is best nowhere is never chosen.

    Args:
        contexts_ND: h_n.
        verifier_auc_NK: `panoply.laser.rewards.verifier_auc` of each arm; NaN where unknown.
        strength: weight of the penalty, as in `panoply.bandit.router.fit_router`.

    Raises:
        ValueError: shapes disagree, or no prompt tells two arms apart.
    """
    h, auc = np.asarray(contexts_ND, np.float64), np.asarray(verifier_auc_NK, np.float64)
    if h.ndim != 2 or auc.ndim != 2 or len(h) != len(auc):
        raise ValueError(f"contexts {h.shape!r} and verdicts {auc.shape!r} must be [N, D], [N, K]")
    ranked = np.where(np.isfinite(auc), auc, -np.inf)
    best = ranked == ranked.max(1, keepdims=True)
    worse = np.isfinite(auc) & ~best
    n, arms = np.nonzero(best & worse.any(1, keepdims=True))
    if not len(n):
        raise ValueError(
            f"none of {len(h)} calibration prompts tells two arms apart: raise "
            "`num_calibration_prompts`, or `num_samples` of each"
        )
    if len(set(arms)) == 1:
        return lambda contexts_BD: np.full(len(np.asarray(contexts_BD)), arms[0])
    weight = 1 / best.sum(1)[n]
    model: Any = LogisticRegression(C=1 / (strength * float(weight.sum())), max_iter=2000)
    model.fit(h[n], arms, sample_weight=weight)
    return lambda contexts_BD: np.asarray(model.predict(np.asarray(contexts_BD)), np.int64)
