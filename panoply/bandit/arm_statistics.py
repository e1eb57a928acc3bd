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
"""Q of `best_probabilities`, which are within 1 / (2 Q) before they are scaled to sum to 1."""


@dataclass(frozen=True, slots=True)
class ArmStatistics:
    """Statistics of all arms, from a state and the contexts of B decisions.

    Statistics are `[K]`, or `[B, K]` where a state holds B runs; probabilities are `[B, K]`, 0 for
    arms that are not available.
    """

    state: State
    contexts_BD: Array
    available_BK: Bools

    @property
    def num_arms(self) -> int:
        """K."""
        return self.available_BK.shape[-1]

    @property
    def numbers(self) -> Array:
        """0, 1, ..., K - 1."""
        return np.arange(self.num_arms, dtype=np.float64)

    @property
    def visits(self) -> Array:
        """Pulls that came back, with a usable reward or without; at least 1."""
        return np.maximum(self.state.visits_K, 1)

    @property
    def total_visits(self) -> Array:
        """Pulls of all arms that came back, `[1]` or `[B, 1]`."""
        return self.state.visits_K.sum(-1, keepdims=True)

    @property
    def mean(self) -> Array:
        """Mean reward - cost of each arm."""
        return self.state.mean_K

    @property
    def deviation(self) -> Array:
        """Standard deviation of all rewards, `[1]` or `[B, 1]`."""
        return self.state.deviation

    @property
    def gains(self) -> Array:
        """Sum of (reward - cost) / propensity of each arm."""
        return self.state.gains_K

    def linear_posterior(self) -> tuple[Array, Array]:
        """Returns `linear_posterior` at the contexts: a mean and a standard deviation, `[B, K]`."""
        mean, variance = linear_posterior(self.state, self.contexts_BD)
        return mean, np.sqrt(variance)

    def uniform(self) -> Array:
        """Returns the same probability for every available arm."""
        return uniform(self.available_BK)

    def greedy(self, index_BK: Array) -> Array:
        """Returns the probabilities of the available arm of the largest index; ties share."""
        index = np.where(self.available_BK, index_BK, -np.inf)
        return uniform(self.available_BK & (index == index.max(-1, keepdims=True)))

    def softmax(self, exponent_BK: Array) -> Array:
        """Returns probabilities proportional to exp(exponent) over the available arms."""
        exponent = np.where(self.available_BK, exponent_BK, -np.inf)
        weight = np.exp(exponent - exponent.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)

    def largest(self, mean_BK: Array, deviation_BK: Array) -> Array:
        """Returns `best_probabilities` of the available arms."""
        return best_probabilities(mean_BK, deviation_BK, self.available_BK)

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


def uniform(available_BK: Bools) -> Array:
    """Returns the same probability for every available arm."""
    return available_BK / available_BK.sum(-1, keepdims=True)


def linear_posterior(state: State, contexts_BD: Array) -> tuple[Array, Array]:
    """Returns x^T A_k^-1 b_k and x^T A_k^-1 x, both `[B, K]`.

    The latter times (pulls + 1) / (visits + 1): an arm whose rewards get lost is not learned about,
    and should not look the more promising for it.
    """
    solved_BKD = (state.inverse_KDD @ contexts_BD[:, None, :, None])[..., 0]
    mean = (solved_BKD * state.moments_KD).sum(-1)
    # Rounding can take a variance that is nearly used up below 0.
    variance = np.maximum((solved_BKD * contexts_BD[:, None]).sum(-1), 0)
    return mean, variance * ((state.pulls_K + 1) / (state.visits_K + 1))


def best_probabilities(mean_BK: Array, deviation_BK: Array, available_BK: Bools) -> Array:
    """Returns P(arm k is the largest) for independent normals N(m_k, s_k^2), `[B, K]`.

        P_k = integral over u in [0, 1] of prod_{j != k} Phi((m_k + s_k Phi^-1(u) - m_j) / s_j)

    by the midpoint rule with Q nodes. The integrand rises from 0 or more to 1 or less, so the error
    is at most 1 / (2 Q); it is the same for arms in any order. Scaled to sum to 1.
    """
    node_Q = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    deviation = np.maximum(deviation_BK, 1e-12)
    value_BKQ = mean_BK[..., None] + deviation[..., None] * ndtri(node_Q)
    below = (value_BKQ[..., None] - mean_BK[:, None, None]) / deviation[:, None, None]
    factor = np.where(available_BK[:, None, None], ndtr(below), 1.0)
    # The product has j = k in it, which is u.
    chance = (factor.prod(-1) / node_Q).mean(-1) * available_BK
    return chance / chance.sum(-1, keepdims=True)
