"""A bandit on recorded outcomes: the arms it would have chosen, where every arm's reward is known.

Shapes: N items, K arms, H size of a context, R runs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from panoply.bandit.bandits import Bandit
from panoply.bandit.update import init, select_arms, uniforms, update
from panoply.types import Ints


def replay(
    bandit: Bandit,
    rewards_NK: ArrayLike,
    orders_RN: Ints,
    *,
    contexts_NH: ArrayLike | None = None,
    prior_KD: ArrayLike | None = None,
    seed: int = 0,
) -> Ints:
    """Returns the arm `[R, N]` chosen at each step of each run.

    The bandit sees the reward of the arm that it chose, before the next item, and nothing else.

    Args:
        bandit: rule that chooses.
        rewards_NK: reward of each arm on each item; NaN is a reward that never comes.
        orders_RN: items in the order of each run.
        contexts_NH: context of each item; None: none.
        prior_KD: prior of Thompson, as `init` takes it.
        seed: seed of the draws.
    """
    rewards = np.asarray(rewards_NK, np.float64)
    contexts = np.empty((len(rewards), 0))
    if contexts_NH is not None:
        contexts = np.asarray(contexts_NH, np.float64)
    runs = len(orders_RN)
    state = init(bandit, rewards.shape[1], contexts.shape[1], prior_KD=prior_KD, num_runs=runs)
    arms = np.empty(orders_RN.shape, np.int64)
    for step, items in enumerate(orders_RN.T):
        draws = uniforms(seed, step, np.arange(runs))
        choice = select_arms(bandit, state, contexts[items], draws)
        state = update(state, choice, rewards[items, choice.arms_B])
        arms[:, step] = choice.arms_B
    return arms


def exp3_gamma(num_arms: int, horizon: int) -> float:
    """Returns Exp3's gamma = min(1, sqrt(K ln K / ((e - 1) T))), corollary 3.2 with g = T."""
    return min(1.0, math.sqrt(num_arms * math.log(num_arms) / ((math.e - 1) * horizon)))
