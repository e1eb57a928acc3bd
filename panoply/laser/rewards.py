"""Rewards of the bandit: raw values on a scale of their own, taken to [-1, 1].

A raw value is better where it is larger: LASeR's is the negative loss of a training step (arXiv
2410.01735, section 3.2). One that is missing or not finite gives NaN, which the bandit rejects, and
leaves no trace in what follows.

Differences from LASeR: quantiles are over a window, not over all of the past, or a falling loss
makes later pulls look better whatever the arm; a constant history gives .5, not 0 / 0; without a
history there is no reward, where LASeR's is the raw loss; and the values of a batch are placed
together, so that their order changes nothing.

Shapes: B values of one batch, N values before it, n responses to one prompt, K arms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from panoply.types import Array


def quantile_rewards(
    raw_B: ArrayLike,
    before_N: ArrayLike,
    *,
    low: float = 0.2,
    high: float = 0.8,
    min_history: int = 5,
) -> Array:
    """Returns the place of each value between two quantiles of recent values, in [0, 1].

        R = clip((v - q_low) / (q_high - q_low), 0, 1),  q over the batch and the values before it

    Where both quantiles are equal, R is 0 below, .5 at and 1 above them. With fewer than
    `min_history` usable values there are no quantiles, and all R are NaN.

    Raises:
        ValueError: the quantiles are not ascending in [0, 1], or min_history < 2.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles must be 0 <= low < high <= 1, got {low!r} and {high!r}")
    if min_history < 2:
        raise ValueError(f"`min_history` must be at least 2, got {min_history!r}")
    raw, before = np.asarray(raw_B, np.float64), np.asarray(before_N, np.float64)
    recent = np.concatenate([before[np.isfinite(before)], raw[np.isfinite(raw)]])
    if len(recent) < min_history:
        return np.full(raw.shape, np.nan)
    below, above = np.quantile(recent, (low, high))
    value = np.where(np.isfinite(raw), raw, np.nan)
    if above > below:
        return np.clip((value - below) / (above - below), 0, 1)
    return (np.sign(value - below) + 1) / 2


def advantages(raw_B: ArrayLike, baseline: float, *, decay: float = 0.9) -> tuple[Array, float]:
    """Returns clip(v - baseline, -1, 1) of a batch, and the baseline for the next one.

        baseline <- decay * baseline + (1 - decay) * mean(v)

    The first batch (baseline NaN) is compared with its own mean, as in BayesianRouter (arXiv
    2510.02850); a single value has nothing to be compared with, and gives NaN.

    Raises:
        ValueError: decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` must be in [0, 1), got {decay!r}")
    raw = np.asarray(raw_B, np.float64)
    usable = np.isfinite(raw)
    if not usable.any():
        return np.full(raw.shape, np.nan), baseline
    mean = float(raw[usable].mean())
    if np.isnan(baseline):
        center, after = (mean if usable.sum() > 1 else np.nan), mean
    else:
        center, after = baseline, decay * baseline + (1 - decay) * mean
    return np.where(usable, np.clip(raw - center, -1, 1), np.nan), after


def gains(before_B: ArrayLike, after_B: ArrayLike) -> Array:
    """Returns the rise after - before, NaN where either is not finite.

    The improvement of a loss is `gains(after, before)`.
    """
    before, after = np.asarray(before_B, np.float64), np.asarray(after_B, np.float64)
    usable = np.isfinite(before) & np.isfinite(after)
    return np.subtract(after, before, out=np.full(before.shape, np.nan), where=usable)


def verifier_auc(scores_n: ArrayLike, right_n: ArrayLike) -> float:
    """Returns how well an arm's scores order responses that a verifier judged, in [0, 1].

        P(s_i > s_j) + P(s_i = s_j) / 2,  i right, j wrong

    over the responses that have a finite score and a verdict (1 right, 0 wrong, NaN unknown). NaN
    where all of them are right or all are wrong: then no arm could have done better or worse.
    """
    scores, right = np.asarray(scores_n, np.float64), np.asarray(right_n, np.float64)
    usable = np.isfinite(scores)
    good, bad = scores[usable & (right == 1)], scores[usable & (right == 0)]
    if not len(good) or not len(bad):
        return float("nan")
    return float((np.sign(good[:, None] - bad) + 1).mean() / 2)


def arm_agreement(scores_Kn: ArrayLike, arm: int) -> float:
    """Returns the share of the other arms that order an arm's best and worst response as it does.

    A tie counts half, an arm that misses either score is left out. NaN where no other arm is left,
    or the arm itself does not tell two responses apart.
    """
    scores = np.asarray(scores_Kn, np.float64)
    usable = np.isfinite(scores[arm])
    if not usable.any():
        return float("nan")
    best = np.where(usable, scores[arm], -np.inf).argmax()
    worst = np.where(usable, scores[arm], np.inf).argmin()
    pair = np.delete(scores, arm, axis=0)[:, [best, worst]]
    pair = pair[np.isfinite(pair).all(1)]
    if scores[arm, best] == scores[arm, worst] or not len(pair):
        return float("nan")
    return float((np.sign(pair[:, 0] - pair[:, 1]) + 1).mean() / 2)


def arm_disagreement(scores_Kn: ArrayLike) -> float:
    """Returns the share of (two arms, two responses) that the arms order in opposite ways.

    Only where both arms score both responses and neither ties; NaN where there is nothing to
    compare.
    """
    scores = np.asarray(scores_Kn, np.float64)
    usable = np.where(np.isfinite(scores), scores, np.nan)
    first, second = np.triu_indices(scores.shape[1], 1)
    order_KP = np.sign(usable[:, first] - usable[:, second])
    first_arm, second_arm = np.triu_indices(len(scores), 1)
    product = order_KP[first_arm] * order_KP[second_arm]
    comparable = np.abs(product) == 1  # false where NaN
    return float((product[comparable] < 0).mean()) if comparable.any() else float("nan")
