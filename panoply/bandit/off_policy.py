"""Value of always choosing one arm, estimated from the log of a bandit that chose among all.

With w_i = 1[a_i = k] / p_i(k), p_i(k) the probability that decision i drew arm k with,

    SNIPS_k = sum_i w_i r_i / sum_i w_i                           (Swaminathan and Joachims, 2015)

A log says nothing of an arm at a decision that could not have drawn it, so each arm is estimated on
the decisions with p_i(k) > 0, which is known before the draw. A bandit that takes the largest index
(LinUCB, UCB1, MOSS) draws with probabilities of 0 and 1: its log supports little but its own
choices, and `support` says so.

Shapes: N decisions, K arms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from panoply.bandit.update import Choice


@dataclass(frozen=True, slots=True)
class ArmEstimate:
    """Mean reward of one arm had it always been chosen; NaN where the log cannot say."""

    value: float
    standard_error: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2: as many decisions of the arm alone would say as much."""
    support: float
    """Share of the decisions with a reward that could have drawn the arm."""
    bandit_value: float
    """Mean reward of the bandit on these same decisions."""


def snips(choice: Choice, rewards_N: ArrayLike, arm: int) -> ArmEstimate:
    """Returns the self-normalized estimate for one arm: in the rewards' range, biased by O(1/N).

    The standard error is sqrt(sum w^2 (r - value)^2) / sum w. Decisions without a reward (NaN) are
    left out, which is right where rewards go missing by chance, and not where an arm loses the bad
    ones.
    """
    rewards, chance = np.asarray(rewards_N, np.float64), choice.propensities_BK[:, arm]
    rewarded = np.isfinite(rewards)
    rows = np.flatnonzero(rewarded & (chance > 0))
    nan = float("nan")
    if not len(rows):
        return ArmEstimate(nan, nan, 0.0, 0.0, nan)
    support, bandit_value = len(rows) / int(rewarded.sum()), float(rewards[rows].mean())

    w = (choice.arms_B[rows] == arm) / chance[rows]
    r = rewards[rows]
    if not w.any():
        return ArmEstimate(nan, nan, 0.0, support, bandit_value)
    value = float((w * r).sum() / w.sum())
    error = float(np.sqrt((w**2 * (r - value) ** 2).sum()) / w.sum())
    size = float(w.sum() ** 2 / (w**2).sum())
    return ArmEstimate(value, error, size, support, bandit_value)
