"""State of a bandit: sums over its rewards.

Shapes: K arms, H size of a context as it comes, D size inside the bandit. A state of B independent
runs has B in front, but for costs and projection.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from panoply.types import Array


class State(NamedTuple):
    """Sums that any bandit needs, all float64."""

    pulls_K: Array
    """Accepted rewards."""
    rejected_K: Array
    """Rewards that were no number in [-1, 1]."""
    rewards_K: Array
    """Sum of reward - cost."""
    squares_K: Array
    """Sum of (reward - cost)^2."""
    gains_K: Array
    """Sum of (reward - cost) / propensity."""
    inverse_KDD: Array
    """A_k^-1, A_k = ridge I + sum x x^T; D = 0 for bandits without context."""
    moments_KD: Array
    """b_k = ridge e_k + sum (reward - cost) x, e_k the prior."""
    costs_K: Array
    """Cost of a decision for each arm."""
    projection_HD: Array
    """Takes contexts to D numbers."""

    @property
    def visits_K(self) -> Array:
        """Pulls that came back, with a usable reward or without."""
        return self.pulls_K + self.rejected_K

    @property
    def mean_K(self) -> Array:
        """Mean reward - cost; that of all arms together (or 0) where an arm has none."""
        total = self.pulls_K.sum(-1, keepdims=True)
        pooled = self.rewards_K.sum(-1, keepdims=True) / np.maximum(total, 1)
        mean = self.rewards_K / np.maximum(self.pulls_K, 1)
        return np.where(self.pulls_K > 0, mean, pooled)

    @property
    def deviation(self) -> Array:
        """Standard deviation of all rewards, with one of deviation 1/2 beside them; keeps K = 1."""
        pulls = self.pulls_K.sum(-1, keepdims=True)
        rewards = self.rewards_K.sum(-1, keepdims=True)
        squares = self.squares_K.sum(-1, keepdims=True)
        spread = np.maximum(squares - rewards**2 / np.maximum(pulls, 1), 0)
        return np.sqrt((spread + 0.25) / (pulls + 1))
