"""What another policy would have been rewarded, estimated from a log with propensities.

With w_i = pi(a_i | x_i) / p(a_i | x_i), the probability that the target policy pi gives the arm
that was drawn over the one that it was drawn with,

    IPS    = 1/N sum_i w_i r_i                                    (Horvitz and Thompson, 1952)
    SNIPS  = sum_i w_i r_i / sum_i w_i                            (Swaminathan and Joachims, 2015)
    DR     = 1/N sum_i [ sum_k pi(k | x_i) q(x_i, k) + w_i (r_i - q(x_i, a_i)) ]
                                                                  (Dudik, Langford and Li, 2011)

A log says nothing of an arm that it could not have drawn: a target that gives it weight is refused.
Policies that take the largest index draw with probabilities of 0 and 1, so their logs support
little but themselves.

Shapes: N decisions, K arms, D size of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from panoply.bandit.bandits import LinUCB, linear_posterior
from panoply.bandit.update import Choice, init, update
from panoply.laser.log import Record
from panoply.types import Array, Ints


class NoSupport(ValueError):
    """The target policy chooses arms that the log could not have held."""


@dataclass(frozen=True, slots=True)
class Logged:
    """Decisions with what came of them."""

    arms_N: Ints
    rewards_N: Array
    """NaN where there was none: such decisions are left out, which is right where rewards go
    missing by chance, and not where an arm loses the bad ones."""
    propensities_NK: Array
    contexts_ND: Array
    rounds_N: Ints

    @classmethod
    def of(cls, record: Record) -> Logged:
        """Returns the rounds of a log that have ended."""
        choice = record.choice(record.ended)
        rounds = record.rewards["round"].to_numpy()
        return cls(
            choice.arms_B, record.rewards_N, choice.propensities_BK, choice.contexts_BD, rounds
        )

    def at(self, rows: ArrayLike) -> Logged:
        """Returns some of the decisions, by number or by a mask.

        What is known before a decision is drawn, such as its round or its propensities, may say
        which: `logged.at((logged.propensities_NK > 0).all(1))` are those that support any target.
        """
        parts = (getattr(self, name) for name in self.__dataclass_fields__)
        return Logged(*(part[np.asarray(rows)] for part in parts))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean reward of a policy."""

    value: float
    standard_error: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2: as many decisions of the target policy itself would say as much."""
    max_weight: float
    num: int
    """Decisions that entered."""
    num_missing: int
    """Decisions without a reward."""


def ips(logged: Logged, target_NK: ArrayLike) -> Estimate:
    """Returns the estimate by inverse propensities; unbiased, also on an adaptive bandit's log.

    Args:
        logged: the log.
        target_NK: probability that the target policy gives each arm, `[N, K]` or `[K]`.

    Raises:
        NoSupport: the target gives weight to arms of propensity 0.
        ValueError: shapes do not fit, a row is no distribution, or no decision has a reward.
    """
    w, rows, _ = weights(logged, target_NK)
    return _estimate(w * logged.rewards_N[rows], w, logged)


def snips(logged: Logged, target_NK: ArrayLike) -> Estimate:
    """Returns the self-normalized estimate: inside the range of the rewards, biased by O(1/N).

    The standard error is sqrt(sum w^2 (r - value)^2) / sum w. Raises as `ips` does, and a
    ValueError where no decision has weight.
    """
    w, rows, _ = weights(logged, target_NK)
    rewards = logged.rewards_N[rows]
    if not w.sum() > 0:
        raise ValueError("the target policy would have made none of the logged decisions")
    value = float((w * rewards).sum() / w.sum())
    error = float(np.sqrt((w**2 * (rewards - value) ** 2).sum()) / w.sum())
    return _counted(value, error, w, logged)


def doubly_robust(logged: Logged, target_NK: ArrayLike, predicted_NK: ArrayLike) -> Estimate:
    """Returns the estimate that is right where either propensities or predictions are.

    Raises as `ips` does, and a ValueError for predictions that do not fit.

    Args:
        logged: the log.
        target_NK: probability that the target policy gives each arm, `[N, K]` or `[K]`.
        predicted_NK: q, a reward for each arm that does not depend on the decision's own one
            (`predictions`).
    """
    w, rows, target = weights(logged, target_NK)
    predicted = np.asarray(predicted_NK, np.float64)
    if predicted.shape != logged.propensities_NK.shape or not np.isfinite(predicted).all():
        shape = logged.propensities_NK.shape
        raise ValueError(f"predictions must be finite numbers {shape}, got {predicted.shape}")
    q = predicted[rows]
    own = np.take_along_axis(q, logged.arms_N[rows, None], 1)[:, 0]
    return _estimate((target * q).sum(1) + w * (logged.rewards_N[rows] - own), w, logged)


def predictions(logged: Logged, ridge: float = 1.0) -> Array:
    """Returns q `[N, K]`: a ridge regression for each arm on the rounds before, in [-1, 1].

    What a round is predicted by was known before it, so a doubly robust estimate on the log of a
    bandit that learns stays unbiased. A constant stands beside the contexts.
    """
    num, num_arms = logged.propensities_NK.shape
    contexts = np.concatenate([np.ones((num, 1)), logged.contexts_ND], axis=1)
    size = contexts.shape[1]
    state = init(LinUCB(ridge=ridge, max_features=size), num_arms, size)
    found = np.empty((num, num_arms))
    starts = np.flatnonzero(np.diff(logged.rounds_N, prepend=-1))
    for rows in np.split(np.arange(num), starts[1:]):
        found[rows] = linear_posterior(state, contexts[rows])[0]
        choice = Choice(contexts[rows], logged.arms_N[rows], logged.propensities_NK[rows])
        state = update(state, choice, logged.rewards_N[rows])
    return np.clip(found, -1, 1)


def weights(logged: Logged, target_NK: ArrayLike) -> tuple[Array, Ints, Array]:
    """Returns w of the decisions that have a reward, which they are, and the target's rows there.

    Raises:
        NoSupport: the target gives weight to arms of propensity 0.
        ValueError: shapes do not fit, a row is no distribution, or no decision has a reward.
    """
    p, given = logged.propensities_NK, np.asarray(target_NK, np.float64)
    if given.shape not in (p.shape, p.shape[1:]):
        raise ValueError(f"the target must be {p.shape} or {p.shape[1:]}, got {given.shape}")
    target = np.broadcast_to(given, p.shape)
    if not ((target >= 0).all() and np.allclose(target.sum(1), 1)):
        raise ValueError("the target's rows must be probabilities that sum to 1")
    lost_NK = (target > 0) & ~(p > 0)
    if lost_NK.any():
        arms = np.flatnonzero(lost_NK.any(0)).tolist()
        raise NoSupport(
            f"at {int(lost_NK.any(1).sum())} of {len(p)} decisions the target policy gives weight "
            f"to arms {arms}, which the log could not have drawn there (sidelined, not yet their "
            "turn in the first pulls, or never the policy's choice); leave such decisions out "
            "(`Logged.at`), or log with a policy that explores (Thompson, Exp3, epsilon-greedy)"
        )
    rows = np.flatnonzero(np.isfinite(logged.rewards_N))
    if not len(rows):
        raise ValueError(f"none of {len(p)} decisions has a reward")
    arms = logged.arms_N[rows, None]
    drawn, wanted = (np.take_along_axis(x[rows], arms, 1)[:, 0] for x in (p, target))
    return wanted / drawn, rows, target[rows]


def _estimate(terms_N: Array, w: Array, logged: Logged) -> Estimate:
    """Returns the mean of terms, with its standard error."""
    num = len(terms_N)
    error = float(terms_N.std(ddof=1) / np.sqrt(num)) if num > 1 else float("nan")
    return _counted(float(terms_N.mean()), error, w, logged)


def _counted(value: float, error: float, w: Array, logged: Logged) -> Estimate:
    squares = float((w**2).sum())
    size = float(w.sum() ** 2 / squares) if squares > 0 else 0.0
    missing = len(logged.rewards_N) - len(w)
    return Estimate(value, error, size, float(w.max()), len(w), missing)
