"""Statistics of the arms as a rule of `panoply.bandit.bandits` sees them.

The array arithmetic of the rules is here, so that the rules themselves, which are configuration
too, need the standard library only.

Shapes: B decisions, K arms, D size of a context, Q quantiles. A state of B runs has B in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from panoply.bandit.state import State
from panoply.types import Array, Bools

_QUANTILES = 64
"""Q of `ArmStatistics.largest`."""


@dataclass(frozen=True, slots=True)
class ArmStatistics:
    """Statistics of K arms at B decisions. Methods return `[B, K]`, 0 for unavailable arms."""

    state: State
    contexts_BD: Array
    available_BK: Bools

    @property
    def num_arms(self) -> int:
        """K."""
        return self.available_BK.shape[-1]

    @property
    def numbers(self) -> Array:
        """Numbers of the arms: 0, 1, ..., K - 1."""
        return np.arange(self.num_arms, dtype=np.float64)

    @property
    def visits(self) -> Array:
        """Pulls of each arm that came back, with a usable reward or without; at least 1."""
        return np.maximum(self.state.visits_K, 1)

    def linear_posterior(self) -> tuple[Array, Array]:
        """Returns x^T A_k^-1 b_k and sqrt(x^T A_k^-1 x) of all arms.

        The square times (pulls + 1) / (visits + 1): an arm whose rewards get lost is not learned
        about, and should not look the more promising for it.
        """
        state, x = self.state, self.contexts_BD
        solved_BKD = (state.inverse_KDD @ x[:, None, :, None])[..., 0]
        mean = (solved_BKD * state.moments_KD).sum(-1)
        # Rounding can take a variance that is nearly used up below 0.
        variance = np.maximum((solved_BKD * x[:, None]).sum(-1), 0)
        return mean, np.sqrt(variance * ((state.pulls_K + 1) / (state.visits_K + 1)))

    def uniform(self) -> Array:
        """Returns the same probability for every available arm."""
        return self.available_BK / self.available_BK.sum(-1, keepdims=True)

    def greedy(self, index_BK: Array) -> Array:
        """Returns the probabilities of the available arm of the largest index; ties share."""
        index = np.where(self.available_BK, index_BK, -np.inf)
        best = self.available_BK & (index == index.max(-1, keepdims=True))
        return best / best.sum(-1, keepdims=True)

    def softmax(self, exponent_BK: Array) -> Array:
        """Returns probabilities proportional to exp(exponent) over the available arms."""
        exponent = np.where(self.available_BK, exponent_BK, -np.inf)
        weight = np.exp(exponent - exponent.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)

    def largest(self, mean_BK: Array, deviation_BK: Array) -> Array:
        """Returns P(arm k is the largest) for independent normals N(m_k, s_k^2).

            P_k = integral over u in [0, 1] of prod_{j != k} Phi((m_k + s_k Phi^-1(u) - m_j) / s_j)

        by the midpoint rule with Q nodes. The integrand rises from 0 or more to 1 or less, so the
        error is at most 1 / (2 Q); it is the same for arms in any order. Scaled to sum to 1.
        """
        node_Q = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        deviation = np.maximum(deviation_BK, 1e-12)
        value_BKQ = mean_BK[..., None] + deviation[..., None] * ndtri(node_Q)
        below = (value_BKQ[..., None] - mean_BK[:, None, None]) / deviation[:, None, None]
        factor = np.where(self.available_BK[:, None, None], ndtr(below), 1.0)
        # The product has j = k in it, which is u.
        chance = (factor.prod(-1) / node_Q).mean(-1) * self.available_BK
        return chance / chance.sum(-1, keepdims=True)

    def only(self, arm: int) -> Array:
        """Returns probability 1 for one arm.

        Raises:
            ValueError: there is no such arm, or it is not available at some decision.
        """
        if not 0 <= arm < self.num_arms or not self.available_BK[..., arm].all():
            raise ValueError(
                f"`arm` is {arm!r}, of {self.num_arms} arms; it must be one that is available"
            )
        return np.broadcast_to(np.eye(self.num_arms)[arm], self.available_BK.shape)

    def after_min_pulls(self, min_pulls: int, probabilities_BK: Array) -> Array:
        """Returns the probabilities, but uniform over arms short of `min_pulls` where any is."""
        short = self.available_BK & (self.state.visits_K < min_pulls)
        num_short = short.sum(-1, keepdims=True)
        return np.where(num_short > 0, short / np.maximum(num_short, 1), probabilities_BK)

    @staticmethod
    def log_plus(value: Array) -> Array:
        """Returns ln+(v) = max(ln v, 0)."""
        return np.log(np.maximum(value, 1))
