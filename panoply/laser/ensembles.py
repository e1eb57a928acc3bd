"""Ensembles: one score of each response from the scores of all arms, the rivals of LASeR.

Arms have no common scale, so that a mean of raw scores is that of the arm with the widest one; in
LASeR's code the mean is raw (arXiv 2410.01735, section 4.2). Here both are.

Shapes: n responses to one prompt, K arms, B prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from panoply.types import Array


def chosen_scores(ensemble: str, scores_Kn: ArrayLike) -> Array:
    """Returns `[n]`, higher is better; NaN where no arm or not every usable arm has a score.

    mean:       mean_k (s_ki - mean_j s_kj) / std_j s_kj, 0 for an arm that tells nothing apart
    mean_raw:   mean_k s_ki
    agreement:  sum_j sign sum_k sign(s_ki - s_kj), the responses that most arms rank below i less
                those that most rank above it (Copeland)

    An arm without any score failed on the prompt, and the others go on without it.

    Raises:
        ValueError: there is no such ensemble.
    """
    scores = np.asarray(scores_Kn, np.float64)
    usable = scores[np.isfinite(scores).any(1)]
    if not len(usable):
        return np.full(scores.shape[1], np.nan)
    complete = np.isfinite(usable).all(0)
    combined = np.full(scores.shape[1], np.nan)
    s = usable[:, complete]
    if not s.shape[1]:
        return combined
    match ensemble:
        case "mean_raw":
            combined[complete] = s.mean(0)
        case "mean":
            combined[complete] = standardized(s).mean(0)
        case "agreement":
            combined[complete] = np.sign(np.sign(s[:, :, None] - s[:, None, :]).sum(0)).sum(1)
        case _:
            raise ValueError(
                f"`ensemble` must be 'mean', 'mean_raw' or 'agreement', got {ensemble!r}"
            )
    return combined


def standardized(scores_Kn: Array) -> Array:
    """Returns each arm's scores about their mean, in units of their deviation; 0 where all tie."""
    centered = scores_Kn - scores_Kn.mean(1, keepdims=True)
    spread = scores_Kn.std(1, keepdims=True)
    return np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 0)


def best_arms(sources_B: Sequence[str], verifier_auc_BK: ArrayLike) -> dict[str, int]:
    """Returns the arm of each source that orders right above wrong responses best.

    The verdicts that it uses bound from above what a choice by source can do.

    Args:
        sources_B: source of each prompt.
        verifier_auc_BK: `panoply.laser.rewards.verifier_auc` of each arm; NaN where it says
            nothing. A source without any gets the arm that is best overall.
    """
    auc, names = np.asarray(verifier_auc_BK, np.float64), np.asarray(sources_B)
    overall = _finite_mean(auc)
    best: dict[str, int] = {}
    for source in sorted(set(sources_B)):
        of_source = _finite_mean(auc[names == source])
        best[source] = int(np.argmax(of_source if np.isfinite(of_source).any() else overall))
    return best


def best_of(scores_n: ArrayLike) -> int:
    """Returns the number of the best response, of equal ones the first."""
    scores = np.asarray(scores_n, np.float64)
    return int(np.where(np.isfinite(scores), scores, -np.inf).argmax())


def _finite_mean(values_BK: Array) -> Array:
    """Returns the mean of the finite values of each column; -inf where there is none."""
    finite = np.isfinite(values_BK)
    count, total = finite.sum(0), np.where(finite, values_BK, 0).sum(0)
    return np.divide(total, count, out=np.full(count.shape, -np.inf), where=count > 0)
