"""A bandit in three functions: `init` makes a state, `select_arms` reads it, `update` changes it.

    state = init(bandit, num_arms, num_features)
    choice = select_arms(bandit, state, contexts_BH, uniforms(seed, round, ids))
    state = update(state, choice, rewards_B)        # later, in any batches, in order

A bandit (`panoply.bandit.bandits`) has one pure rule from a state and contexts to the
*probability* of every arm; the arm is then drawn from these probabilities. So the propensities
that are returned are exactly those that the arm was drawn with, ties are split evenly whatever the
arms' order, and the only randomness is one number per decision, keyed by (seed, round, decision),
so that arrival order changes nothing.

The bandit maximizes reward minus cost. A reward is a number in [-1, 1]: one that is NaN, infinite
or beyond is counted in `rejected_K` and changes nothing else. The state holds what any rule
needs, so a log of choices and rewards replays under `update` alone, and
`np.savez(file, **state._asdict())` and `State(**np.load(file))` keep every bit of it.

Shapes: B decisions, K arms, H size of a context as given, D size inside the bandit (0 for bandits
without context). A state may have a leading axis of B independent runs, for simulation: decision i
then belongs to run i.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panoply.bandit.arm_statistics import ArmStatistics
from panoply.bandit.bandits import Bandit, LinearBandit, Thompson
from panoply.bandit.state import State
from panoply.types import Array, Ints

Keys: TypeAlias = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
"""Step of SplitMix64: 2^64 over the golden ratio, made odd."""


class Choice(NamedTuple):
    """Arms that were drawn for decisions, as a log keeps them."""

    contexts_BD: Array
    """Contexts as the bandit sees them, projected."""
    arms_B: Ints
    propensities_BK: Array
    """Probability of every arm; rows sum to 1."""


def uniforms(seed: int, round: int, ids: Sequence[str] | Sequence[int] | Ints) -> Array:
    """Returns a number in [0, 1) for each decision, a pure function of (seed, round, id).

    SplitMix64 (Steele, Lea and Flood, 2014) over the three; texts enter by 64 bits of BLAKE2.
    """
    words = [
        int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little")
        if isinstance(i, str)
        else int(i) % 2**64
        for i in ids
    ]
    key_B = np.zeros(len(words), np.uint64)
    for part in ([seed % 2**64], [round % 2**64], words):
        key_B = _mix(key_B + np.array(part, np.uint64))
    return (key_B >> np.uint64(11)).astype(np.float64) * 2.0**-53


def init(
    bandit: Bandit,
    num_arms: int,
    num_features: int = 0,
    *,
    costs_K: ArrayLike | None = None,
    prior_KD: ArrayLike | None = None,
    num_runs: int | None = None,
) -> State:
    """Returns the state before the first reward.

    Args:
        bandit: rule that the state is for; linear ones need a context (a constant 1 will do).
        num_arms: K.
        num_features: H. Contexts should have about unit length. Beyond the bandit's
            `max_features` they are projected by a fixed matrix of random signs over sqrt(D), which
            keeps lengths and products in expectation (Achlioptas, 2003).
        costs_K: cost of a decision for each arm, in units of the reward, in [0, 1].
        prior_KD: mean of Thompson's prior, e_k of BayesianRouter (`panoply.bandit.router`), on
            features as `project` returns them; None is 0.
        num_runs: B for a state of B independent runs.

    Raises:
        ValueError: no arm, no context where one is needed, or costs or a prior that do not fit.
    """
    if num_arms < 1 or num_features < 0:
        raise ValueError(
            f"num_arms must be at least 1 and num_features at least 0, got {num_arms!r}, "
            f"{num_features!r}"
        )
    size, ridge = 0, 1.0
    if isinstance(bandit, LinearBandit):
        if not num_features:
            raise ValueError(
                f"{bandit!r} needs contexts of at least one number; a constant 1 will do"
            )
        size, ridge = min(num_features, bandit.max_features), bandit.ridge
    costs = np.zeros(num_arms) if costs_K is None else np.array(costs_K, np.float64)
    if costs.shape != (num_arms,) or not ((costs >= 0) & (costs <= 1)).all():
        raise ValueError(f"costs must be {num_arms} numbers in [0, 1], got {costs_K!r}")
    prior = np.zeros((num_arms, size)) if prior_KD is None else np.array(prior_KD, np.float64)
    if prior.shape != (num_arms, size) or not np.isfinite(prior).all():
        raise ValueError(
            f"the prior must be finite numbers [{num_arms}, {size}], got shape {prior.shape!r}"
        )
    if prior_KD is not None and not isinstance(bandit, Thompson):
        raise ValueError(f"only Thompson takes a prior, not {bandit!r}; leave it out")
    runs = () if num_runs is None else (num_runs,)

    def each(value: Array) -> Array:
        return np.broadcast_to(value, runs + value.shape).copy()

    nothing = np.zeros(num_arms)
    return State(
        pulls_K=each(nothing),
        rejected_K=each(nothing),
        rewards_K=each(nothing),
        squares_K=each(nothing),
        gains_K=each(nothing),
        inverse_KDD=each(np.tile(np.eye(size) / ridge, (num_arms, 1, 1))),
        moments_KD=each(ridge * prior),
        costs_K=costs,
        projection_HD=projection(num_features, size),
    )


def select_arms(
    bandit: Bandit,
    state: State,
    contexts_BH: ArrayLike | None,
    uniforms_B: ArrayLike,
    available_BK: ArrayLike | None = None,
) -> Choice:
    """Draws an arm for each decision; all of them see the same state.

    Args:
        bandit: rule that the state was made for.
        state: as of the start of the round.
        contexts_BH: contexts; None for states made with num_features = 0.
        uniforms_B: `uniforms(seed, round, ids)`.
        available_BK: which arms may be chosen, `[K]` or for each decision; None for all.

    Raises:
        ValueError: contexts of another size or not finite, or a decision without any arm.
    """
    draws = np.asarray(uniforms_B, np.float64)
    contexts = project(state, np.empty((len(draws), 0)) if contexts_BH is None else contexts_BH)
    shape = (len(draws), len(state.costs_K))
    available = np.ones(shape, np.bool_)
    if available_BK is not None:
        available = np.broadcast_to(np.asarray(available_BK, np.bool_), shape)
    if len(contexts) != len(draws):
        raise ValueError(f"{len(contexts)} contexts do not match {len(draws)} uniforms")
    if not available.any(-1).all():
        where = np.flatnonzero(~available.any(-1)).tolist()
        raise ValueError(f"no arm is available for decisions {where}; bring one back")
    statistics = ArmStatistics(state, contexts, available)
    chances = np.broadcast_to(bandit.propensities(statistics), shape)
    chances = chances / chances.sum(-1, keepdims=True)
    cumulative = np.cumsum(chances, -1)
    # An arm of probability 0 adds nothing to the sum, so it is never the first one above.
    arms = (cumulative > draws[:, None] * cumulative[:, -1:]).argmax(-1)
    return Choice(contexts, arms, chances)


def update(state: State, choice: Choice, rewards_B: ArrayLike) -> State:
    """Returns the state after these rewards, in their order; batches leave no trace in its bits.

        A_k <- A_k + x x^T,  b_k <- b_k + r x          (arXiv 2410.01735, section 3.2)

    with A_k^-1 kept instead of A_k (Sherman and Morrison, 1950):

        (A + x x^T)^-1 = A^-1 - (A^-1 x) (A^-1 x)^T / (1 + x^T A^-1 x).

    Beside these, per arm: accepted and rejected rewards, the sums of r and r^2, and for Exp3 that
    of r / p, p the propensity that the arm was drawn with, whose mean over all decisions is
    unbiased for the arm's mean reward. r is the reward minus the arm's cost.

    Raises:
        ValueError: shapes that disagree, an unknown arm, or one that was drawn with probability 0.
    """
    rewards = np.asarray(rewards_B, np.float64)
    num_arms, arms = len(state.costs_K), np.asarray(choice.arms_B)
    if not rewards.shape == arms.shape == choice.contexts_BD.shape[:1]:
        raise ValueError(
            f"{rewards.shape!r} rewards, {arms.shape!r} arms and contexts "
            f"{choice.contexts_BD.shape!r} do not match"
        )
    if not ((arms >= 0) & (arms < num_arms)).all():
        raise ValueError(f"arms must be in 0..{num_arms - 1}, got {np.unique(arms).tolist()}")
    chance = np.take_along_axis(choice.propensities_BK, arms[:, None], 1)[:, 0]
    if not (chance > 0).all():
        where = np.flatnonzero(~(chance > 0)).tolist()
        raise ValueError(f"decisions {where} have an arm of propensity 0; is the log intact?")
    usable = np.abs(rewards) <= 1  # false where NaN
    rows = np.flatnonzero(usable)
    # Where each reward goes: an arm, and in a state of several runs the run that is its decision's.
    runs = state.pulls_K.ndim == 2
    at = (rows, arms[rows]) if runs else (arms[rows],)
    lost = (np.flatnonzero(~usable), arms[~usable]) if runs else (arms[~usable],)
    net = rewards[rows] - state.costs_K[arms[rows]]
    inverse, moments = state.inverse_KDD, state.moments_KD
    if moments.shape[-1]:
        inverse, moments = inverse.copy(), moments.copy()
        # One after the other: an arm that comes twice in a batch is updated twice.
        for place, x, r in zip(zip(*at, strict=True), choice.contexts_BD[rows], net, strict=True):
            solved = inverse[place] @ x
            inverse[place] -= np.outer(solved, solved / (1 + x @ solved))
            moments[place] += r * x
    return state._replace(
        pulls_K=_plus(state.pulls_K, at, 1.0),
        rejected_K=_plus(state.rejected_K, lost, 1.0),
        rewards_K=_plus(state.rewards_K, at, net),
        squares_K=_plus(state.squares_K, at, net**2),
        gains_K=_plus(state.gains_K, at, net / chance[rows]),
        inverse_KDD=inverse,
        moments_KD=moments,
    )


def project(state: State, contexts_BH: ArrayLike) -> Array:
    """Returns contexts `[B, D]` as the bandit sees them.

    Raises:
        ValueError: they have another size than the state was made for, or are not finite.
    """
    contexts = np.asarray(contexts_BH, np.float64)
    size = len(state.projection_HD)
    if contexts.ndim != 2 or contexts.shape[1] != size:
        raise ValueError(f"contexts must be [B, {size}] for this state, got {contexts.shape!r}")
    if not np.isfinite(contexts).all():
        where = np.flatnonzero(~np.isfinite(contexts).all(1)).tolist()
        raise ValueError(f"contexts of decisions {where} are not finite; leave these out")
    return contexts @ state.projection_HD


def projection(num_features: int, size: int) -> Array:
    """Returns `[H, D]`: random signs over sqrt(D), or the identity where nothing is lost."""
    if num_features == size:
        return np.eye(size)
    signs = np.where(uniforms(0, size, np.arange(num_features * size)) < 0.5, -1.0, 1.0)
    return signs.reshape(num_features, size) / np.sqrt(max(size, 1))


def _plus(sums: Array, at: tuple[Ints, ...], values: Array | float) -> Array:
    """Returns the sums with values added one after the other."""
    total = sums.copy()
    np.add.at(total, at, values)
    return total


def _mix(words: Keys) -> Keys:
    """One step of SplitMix64: neighbors come out unrelated."""
    words = words + np.array([_GOLDEN], np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], np.uint64)
    words = (words ^ (words >> np.uint64(27))) * np.array([0x94D049BB133111EB], np.uint64)
    return words ^ (words >> np.uint64(31))
