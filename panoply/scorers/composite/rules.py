"""Rules that make one score of several: each an equation of the parts' scaled scores.

    sum         sum_k w_k z_k
    mean        mean_k z_k
    median      median_k z_k
    minimum     min_k z_k                          WCO of Coste et al. (arXiv 2310.02743)
    uwo         mean_k z_k - lambda var_k z_k      UWO of the same; population variance
    lcb         mean_k z_k - beta std_k z_k        arXiv 2401.16635
    hierarchy   w_h z_h + 1[z_h >= T] sum_a w_a sigma(z_a)      ALaRM (arXiv 2403.06754)

Caution (minimum, uwo, lcb) takes disagreement for error, as among models of one recipe. Among
unlike models it is taste, and the mean, the median or the best part alone is the rule to beat.

Shapes: K parts, n responses to a prompt.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
from scipy.special import expit

from panoply.config.composite import (
    LowerBound,
    Mean,
    Median,
    Minimum,
    PooledRule,
    Scale,
    VariancePenalty,
    WeightedSum,
)
from panoply.laser.ensembles import standardized
from panoply.types import Array, Bools


def pooled(rule: PooledRule, z_Kn: Array, weights_K: Array) -> Array:
    """Returns the score `[n]` of each response by a rule of all parts together.

    Args:
        rule: see the table above.
        z_Kn: scaled scores, none missing.
        weights_K: of the sum alone.
    """
    match rule:
        case WeightedSum():
            return weights_K @ z_Kn
        case Mean():
            return z_Kn.mean(0)
        case Median():
            return np.median(z_Kn, axis=0)
        case Minimum():
            return z_Kn.min(0)
        case LowerBound():
            return z_Kn.mean(0) - rule.beta * z_Kn.std(0)
        case VariancePenalty():
            return z_Kn.mean(0) - rule.penalty * z_Kn.var(0)
        case _:
            assert_never(rule)


def hierarchy(
    first_n: Array, first_weight: float, aspects_An: Array, weights_A: Array, threshold: float
) -> Array:
    """Returns w_h z_h + 1[z_h >= T] sum_a w_a sigma(z_a), `[n]`.

    What reaches the threshold stays above all that does not, in whatever order the aspects put it,
    where no weight is negative; below it the order is that of the first part. An aspect of a
    response below the threshold may be NaN: nothing depends on it.

    Args:
        first_n: scaled score of the first part, z_h.
        first_weight: w_h.
        aspects_An: scaled scores of the aspects.
        weights_A: w_a.
        threshold: T.
    """
    bonus_n = weights_A @ expit(aspects_An)
    return first_weight * first_n + np.where(first_n >= threshold, bonus_n, 0.0)


def scaled(scores_n: Array, scale: Scale, mean: float, deviation: float) -> Array:
    """Returns a part's scores in the unit that a file names, `[n]`.

    frozen: (s - mean) / deviation;   prompt: by the mean and deviation of these n;   raw: s

    Within the prompt a part whose scores all tie tells nothing apart, and gets 0.
    """
    match scale:
        case "frozen":
            return (scores_n - mean) / deviation
        case "prompt":
            return standardized(scores_n[None])[0]
        case "raw":
            return scores_n
        case _:
            assert_never(scale)


def usable(scores_Kn: Array, quorum: int) -> tuple[Bools, Bools]:
    """Returns the parts `[K]` and the responses `[n]` that a rule of all parts is applied to.

    A response counts where `quorum` parts or more have scored it; of the parts, those that have
    scored all of these responses, so that one prompt's responses are compared by the same parts.
    Where they are fewer than the quorum, no response counts.

    Args:
        scores_Kn: NaN where a score is missing.
        quorum: least parts.
    """
    is_scored_Kn = np.isfinite(scores_Kn)
    responses_n = is_scored_Kn.sum(0) >= quorum
    parts_K = np.asarray(is_scored_Kn[:, responses_n].all(1), np.bool_)
    if parts_K.sum() < quorum:
        responses_n = np.zeros_like(responses_n)
    return parts_K, responses_n
