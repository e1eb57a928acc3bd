"""Policies: from a state and contexts to the probability of every arm.

Policies that estimate arms first pull each of them `first_pulls` times: while any available arm
lacks some, the decision is uniform over those that do. A rejected reward counts as a pull here and
in every confidence width, or an arm that never returns a usable one would be pulled for ever.

Shapes: B decisions, K arms, D size of a context, Q quantiles. A state of B runs has B in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from panoply.bandit.state import State
from panoply.types import Array

Flags: TypeAlias = NDArray[np.bool_]

_QUANTILES = 64
"""Q of Thompson's probabilities, which are within 1 / (2 Q) before they are scaled to sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinUCB:
    """argmax_k theta_k . x + alpha sqrt(x^T A_k^-1 x), theta_k = A_k^-1 b_k (arXiv 2410.01735)."""

    alpha: float = 1.0
    """Width of the confidence bound; .1 in LASeR's code, where it locks on one arm."""
    ridge: float = 1.0
    """A_k starts at ridge I."""
    max_features: int = 64
    """Longer contexts are projected to this size."""
    first_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _at_least(self, alpha=0, max_features=1, first_pulls=0)
        _positive(self, "ridge")

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`."""
        mean, variance = linear_posterior(state, contexts_BD)
        best = greedy(mean + self.alpha * np.sqrt(variance), available_BK)
        return _after_first(self.first_pulls, state, available_BK, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thompson:
    """Draws w_k ~ N(mu_k, noise^2 A_k^-1), A_k = ridge I + sum x x^T, and takes argmax_k w_k . x.

    The posterior of r = w_k . x + N(0, noise^2) under the prior w_k ~ N(e_k, I / strength). With a
    prior from an offline router it is BayesianRouter (arXiv 2510.02850), one decision per pair;
    its Lambda_k is A_k / noise^2, its sigma^2 is noise^2 and its lambda_0 is strength.

    w_k . x is normal and independent between arms, so no vector is drawn: the probability of each
    arm to be the largest is computed (`best_probabilities`), and the arm drawn from it.
    """

    noise: float = 0.5
    """Standard deviation of a reward around its mean; of 0 or 1 it is at most .5."""
    strength: float = 1.0
    """Precision of the prior: a wrong one washes out after some strength noise^2 rewards."""
    max_features: int = 64
    """Longer contexts are projected to this size."""
    first_pulls: int = 0
    """Pulls of each arm before the first estimate counts; the prior explores by itself."""

    def __post_init__(self) -> None:
        _at_least(self, max_features=1, first_pulls=0)
        _positive(self, "noise", "strength")

    @property
    def ridge(self) -> float:
        """A_k starts at ridge I."""
        return self.strength * self.noise**2

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`."""
        mean, variance = linear_posterior(state, contexts_BD)
        best = best_probabilities(mean, self.noise * np.sqrt(variance), available_BK)
        return _after_first(self.first_pulls, state, available_BK, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class UCB1:
    """argmax_k mean_k + alpha sqrt(ln t / n_k) (Auer, Cesa-Bianchi and Fischer, 2002)."""

    alpha: float = math.sqrt(2)
    """Width of the confidence bound; sqrt(2) is the paper's, for rewards in [0, 1]."""
    first_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _at_least(self, alpha=0, first_pulls=1)

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[K]`, or `[B, K]` where arms or runs differ between decisions."""
        visits = np.maximum(state.visits_K, 1)
        bonus = self.alpha * np.sqrt(np.log(visits.sum(-1, keepdims=True)) / visits)
        best = greedy(state.mean_K + bonus, available_BK)
        return _after_first(self.first_pulls, state, available_BK, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class MOSS:
    """UCB for a known horizon (Audibert and Bubeck, 2009), its width in units of the rewards' own.

        argmax_k mean_k + scale s sqrt( ln+( T / (K n_k) ) / n_k )

    s is the standard deviation of all rewards so far, with one of deviation 1/2 beside them. An arm
    is explored no longer after T / K pulls: what it could still teach would come too late. The
    paper has scale s = 1, which for rewards of 0 or 1 is a scale of 2 or more; that holds against
    the worst case and is slow in any other.
    """

    horizon: int
    """T, decisions in all."""
    scale: float = 0.85
    """Width of the confidence bound, fixed on synthetic tables (`evidence.synthetic_arms`)."""
    first_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _at_least(self, horizon=1, scale=0, first_pulls=1)

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[K]`, or `[B, K]` where arms or runs differ between decisions."""
        visits = np.maximum(state.visits_K, 1)
        rate = np.log(np.maximum(self.horizon / (visits.shape[-1] * visits), 1))
        bonus = self.scale * state.deviation * np.sqrt(rate / visits)
        best = greedy(state.mean_K + bonus, available_BK)
        return _after_first(self.first_pulls, state, available_BK, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedy:
    """The arm of the best mean with probability 1 - epsilon, else any."""

    epsilon: float = 0.1
    """Share of decisions that are uniform over the arms."""
    first_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _at_least(self, epsilon=0, first_pulls=1)
        _at_most_one(self, "epsilon")

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[K]`, or `[B, K]` where arms or runs differ between decisions."""
        best = greedy(state.mean_K, available_BK)
        mixed = (1 - self.epsilon) * best + self.epsilon * even(available_BK)
        return _after_first(self.first_pulls, state, available_BK, mixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exp3:
    """p_k = (1 - gamma) w_k / sum_j w_j + gamma / K, w_k = exp(gamma G_k / K) (Auer et al., 2002).

    G_k is the sum of r / p over the pulls of the arm. Rewards in [0, 1]; those in [-1, 1] keep the
    exponent of a step in [-1, 1]. `rate` is the paper's gamma for a known horizon.
    """

    gamma: float = 0.1
    """Share of decisions that are uniform over the arms, and step size."""

    def __post_init__(self) -> None:
        _positive(self, "gamma")
        _at_most_one(self, "gamma")

    @staticmethod
    def rate(num_arms: int, horizon: int) -> float:
        """Returns gamma = min(1, sqrt(K ln K / ((e - 1) T))), corollary 3.2 with g = T."""
        return min(1.0, math.sqrt(num_arms * math.log(num_arms) / ((math.e - 1) * horizon)))

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`; sidelined arms leave their share to the others."""
        exponent = self.gamma * state.gains_K / state.gains_K.shape[-1]
        exponent = np.where(available_BK, exponent, -np.inf)
        weight = np.exp(exponent - exponent.max(-1, keepdims=True))
        share = weight / weight.sum(-1, keepdims=True)
        return (1 - self.gamma) * share + self.gamma * even(available_BK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every arm alike."""

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`."""
        return even(available_BK)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedArm:
    """Always the same arm."""

    arm: int
    """Its number."""

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`.

        Raises:
            ValueError: there is no such arm, or it is sidelined.
        """
        arms = available_BK.shape[-1]
        if not 0 <= self.arm < arms or not available_BK[..., self.arm].all():
            raise ValueError(f"`arm` is {self.arm!r}, of {arms} arms; it must be one available")
        return np.broadcast_to(np.eye(arms)[self.arm], available_BK.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """Each arm in turn; the next one where an arm is sidelined."""

    span: int = 1
    """Rewards that come back before it moves on."""

    def __post_init__(self) -> None:
        _at_least(self, span=1)

    def propensities(self, state: State, contexts_BD: Array, available_BK: Flags) -> Array:
        """Returns `[B, K]`."""
        arms = available_BK.shape[-1]
        turn = state.visits_K.sum(-1, keepdims=True) // self.span
        return greedy(-((np.arange(arms) - turn) % arms), available_BK)


Bandit: TypeAlias = (
    LinUCB | Thompson | UCB1 | MOSS | EpsilonGreedy | Exp3 | Uniform | FixedArm | Sequential
)


def even(available_BK: Flags) -> Array:
    """Returns the same probability for every available arm."""
    return available_BK / available_BK.sum(-1, keepdims=True)


def greedy(index_BK: Array, available_BK: Flags) -> Array:
    """Returns the probabilities of the available arm of the largest index, equal ones sharing."""
    index = np.where(available_BK, index_BK, -np.inf)
    return even(available_BK & (index == index.max(-1, keepdims=True)))


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


def best_probabilities(mean_BK: Array, spread_BK: Array, available_BK: Flags) -> Array:
    """Returns P(arm k is the largest) for independent normals N(m_k, s_k^2), `[B, K]`.

        P_k = integral over u in [0, 1] of prod_{j != k} Phi((m_k + s_k Phi^-1(u) - m_j) / s_j)

    by the midpoint rule with Q nodes. The integrand rises from 0 or more to 1 or less, so the error
    is at most 1 / (2 Q); it is the same for arms in any order. Scaled to sum to 1.
    """
    node_Q = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    spread = np.maximum(spread_BK, 1e-12)
    value_BKQ = mean_BK[..., None] + spread[..., None] * ndtri(node_Q)
    below = (value_BKQ[..., None] - mean_BK[:, None, None]) / spread[:, None, None]
    factor = np.where(available_BK[:, None, None], ndtr(below), 1.0)
    # The product has j = k in it, which is u.
    chance = (factor.prod(-1) / node_Q).mean(-1) * available_BK
    return chance / chance.sum(-1, keepdims=True)


def _after_first(first_pulls: int, state: State, available_BK: Flags, then_BK: Array) -> Array:
    """Returns `then`, but uniform over arms that lack first pulls where there are any."""
    lacking = available_BK & (state.visits_K < first_pulls)
    num = lacking.sum(-1, keepdims=True)
    return np.where(num > 0, lacking / np.maximum(num, 1), then_BK)


def _at_least(policy: object, **least: float) -> None:
    for name, bound in least.items():
        if not (value := getattr(policy, name)) >= bound:
            raise ValueError(f"`{name}` must be at least {bound}, got {value!r}")


def _positive(policy: object, *names: str) -> None:
    for name in names:
        if not (value := getattr(policy, name)) > 0:
            raise ValueError(f"`{name}` must be positive, got {value!r}")


def _at_most_one(policy: object, name: str) -> None:
    if not (value := getattr(policy, name)) <= 1:
        raise ValueError(f"`{name}` must be at most 1, got {value!r}")
