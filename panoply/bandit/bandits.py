"""Bandits: the settings of each, and its rule from arm statistics to the probability of every arm.

A new bandit is a class here and its name in `Bandit`. Its settings are its configuration, so this
module needs the standard library only: arrays are those of
`panoply.bandit.arm_statistics.ArmStatistics`.

Bandits that estimate arms first pull each of them `min_pulls` times: while any available arm is
short of that, the decision is uniform over those that are. A rejected reward counts as a pull here
and in every confidence width, or an arm that never returns a usable one would be pulled for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from panoply.config import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from panoply.bandit.arm_statistics import ArmStatistics
    from panoply.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LinUCB:
    """argmax_k theta_k . x + alpha sqrt(x^T A_k^-1 x), theta_k = A_k^-1 b_k (arXiv 2410.01735)."""

    kind: ClassVar[str] = "lin-ucb"
    alpha: float = 1.0
    """Width of the confidence bound; .1 in LASeR's code, where it locks on one arm."""
    ridge: float = 1.0
    """Start of A_k, as a multiple of the identity."""
    max_features: int = 64
    """Size to which longer contexts are projected."""
    min_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _require_at_least(self, alpha=0, max_features=1, min_pulls=0)
        _require_positive(self, "ridge")

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        mean, deviation = arms.linear_posterior()
        return arms.after_min_pulls(self.min_pulls, arms.greedy(mean + self.alpha * deviation))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thompson:
    """Draws w_k ~ N(mu_k, s^2 A_k^-1), A_k = ridge I + sum x x^T, and takes argmax_k w_k . x.

    The posterior of r = w_k . x + N(0, s^2) under the prior w_k ~ N(e_k, I / lambda), s the
    `reward_std` and lambda the `prior_precision`. With a prior from an offline router it is
    BayesianRouter (arXiv 2510.02850), one decision per pair; its Lambda_k is A_k / s^2, its
    sigma^2 is s^2 and its lambda_0 is lambda.

    w_k . x is normal and independent between arms, so no vector is drawn: the probability of each
    arm to be the largest is computed (`ArmStatistics.largest`), and the arm drawn from it.
    """

    kind: ClassVar[str] = "thompson"
    reward_std: float = 0.5
    """Standard deviation of a reward around its mean; of 0 or 1 it is at most .5."""
    prior_precision: float = 1.0
    """Precision of the prior: a wrong one washes out after some precision reward_std^2 rewards."""
    max_features: int = 64
    """Size to which longer contexts are projected."""
    min_pulls: int = 0
    """Pulls of each arm before the first estimate counts; the prior explores by itself."""

    def __post_init__(self) -> None:
        _require_at_least(self, max_features=1, min_pulls=0)
        _require_positive(self, "reward_std", "prior_precision")

    @property
    def ridge(self) -> float:
        """Start of A_k, as a multiple of the identity."""
        return self.prior_precision * self.reward_std**2

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        mean, deviation = arms.linear_posterior()
        best = arms.largest(mean, self.reward_std * deviation)
        return arms.after_min_pulls(self.min_pulls, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class UCB1:
    """argmax_k mean_k + alpha sqrt(ln t / n_k) (Auer, Cesa-Bianchi and Fischer, 2002)."""

    kind: ClassVar[str] = "ucb1"
    alpha: float = math.sqrt(2)
    """Width of the confidence bound; sqrt(2) is the paper's, for rewards in [0, 1]."""
    min_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _require_at_least(self, alpha=0, min_pulls=1)

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        visits = arms.visits
        width = (arms.log_plus(visits.sum(-1, keepdims=True)) / visits) ** 0.5
        return arms.after_min_pulls(
            self.min_pulls, arms.greedy(arms.state.mean_K + self.alpha * width)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MOSS:
    """UCB for a known horizon (Audibert and Bubeck, 2009), its width in units of the rewards' own.

        argmax_k mean_k + scale s sqrt( ln+( T / (K n_k) ) / n_k )

    s is the standard deviation of all rewards so far, with one of deviation 1/2 beside them. An arm
    is explored no longer after T / K pulls: what it could still teach would come too late. The
    paper has scale s = 1, which for rewards of 0 or 1 is a scale of 2 or more; that holds against
    the worst case and is slow in any other.
    """

    kind: ClassVar[str] = "moss"
    horizon: int
    """Number of decisions in all, T."""
    scale: float = 0.85
    """Width of the confidence bound, fixed on synthetic tables (`evidence.synthetic_arms`)."""
    min_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _require_at_least(self, horizon=1, scale=0, min_pulls=1)

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        rate = arms.log_plus(self.horizon / (arms.num_arms * arms.visits))
        width = self.scale * arms.state.deviation * (rate / arms.visits) ** 0.5
        return arms.after_min_pulls(self.min_pulls, arms.greedy(arms.state.mean_K + width))


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedy:
    """The arm of the best mean with probability 1 - epsilon, else any."""

    kind: ClassVar[str] = "epsilon-greedy"
    epsilon: float = 0.1
    """Share of decisions that are uniform over the arms."""
    min_pulls: int = 1
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        _require_at_least(self, epsilon=0, min_pulls=1)
        _require_at_most_1(self, "epsilon")

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        mixed = (1 - self.epsilon) * arms.greedy(arms.state.mean_K) + self.epsilon * arms.uniform()
        return arms.after_min_pulls(self.min_pulls, mixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exp3:
    """p_k = (1 - gamma) w_k / sum_j w_j + gamma / K, w_k = exp(gamma G_k / K) (Auer et al., 2002).

    G_k is the sum of r / p over the pulls of the arm. Rewards in [0, 1]; those in [-1, 1] keep the
    exponent of a step in [-1, 1]. Suspended arms leave their share to the others.
    """

    kind: ClassVar[str] = "exp3"
    gamma: float = 0.1
    """Share of decisions that are uniform over the arms, and step size."""

    def __post_init__(self) -> None:
        _require_positive(self, "gamma")
        _require_at_most_1(self, "gamma")

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        weighted = arms.softmax(self.gamma * arms.state.gains_K / arms.num_arms)
        return (1 - self.gamma) * weighted + self.gamma * arms.uniform()


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every arm alike."""

    kind: ClassVar[str] = "uniform"

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        return arms.uniform()


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedArm:
    """Always the same arm; it is never suspended."""

    kind: ClassVar[str] = "fixed-arm"
    arm: int
    """Number of the arm, from 0."""

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`.

        Raises:
            ValueError: there is no such arm, or it is not available.
        """
        return arms.only(self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """Each arm in turn; the next one where an arm is suspended."""

    kind: ClassVar[str] = "sequential"
    period: int = 1
    """Rewards that come back before the next arm has its turn."""

    def __post_init__(self) -> None:
        _require_at_least(self, period=1)

    def propensities(self, arms: ArmStatistics) -> Array:
        """Returns the probability of each arm, `[B, K]`."""
        turn = arms.state.visits_K.sum(-1, keepdims=True) // self.period
        return arms.greedy(-((arms.numbers - turn) % arms.num_arms))


LinearBandit: TypeAlias = LinUCB | Thompson
"""Bandits that look at a context."""
Bandit: TypeAlias = (
    LinearBandit | UCB1 | MOSS | EpsilonGreedy | Exp3 | Uniform | FixedArm | Sequential
)


def recorded_bandit(record: Mapping[str, Any]) -> Bandit:
    """Returns the bandit that `panoply.config.as_dict` recorded.

    Raises:
        ValueError: no bandit is of that kind.
    """
    settings = {name: value for name, value in record.items() if name != "kind"}
    for bandit in get_args(Bandit):
        if bandit.kind == record["kind"]:
            return bandit(**settings)
    kinds = [bandit.kind for bandit in get_args(Bandit)]
    raise ValueError(f"`bandit.kind` must be one of {kinds}, got {record['kind']!r}")


def _require_at_least(bandit: Bandit, **bounds: float) -> None:
    for name, bound in bounds.items():
        value = getattr(bandit, name)
        require(value >= bound, name, value, f">= {bound}")


def _require_positive(bandit: Bandit, *names: str) -> None:
    for name in names:
        value = getattr(bandit, name)
        require(value > 0, name, value, "positive")


def _require_at_most_1(bandit: Bandit, name: str) -> None:
    value = getattr(bandit, name)
    require(value <= 1, name, value, "at most 1")
