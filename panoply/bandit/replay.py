"""A bandit on recorded outcomes: what it would have chosen, where every arm's reward is known.

Shapes: N items, K arms, H size of a context, R runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from panoply.bandit.bandits import Bandit
from panoply.bandit.update import choose, init, uniforms, update
from panoply.types import Ints


def replay(
    policy: Bandit,
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
        policy: the bandit's.
        rewards_NK: reward of each arm on each item; NaN is a reward that never comes.
        orders_RN: items in the order of each run.
        contexts_NH: what is known of an item before an arm is chosen.
        prior_KD: as of `init`.
        seed: of the draws.
    """
    rewards = np.asarray(rewards_NK, np.float64)
    given = np.empty((len(rewards), 0)) if contexts_NH is None else contexts_NH
    contexts, runs = np.asarray(given, np.float64), len(orders_RN)
    state = init(policy, rewards.shape[1], contexts.shape[1], prior_KD=prior_KD, num_runs=runs)
    arms = np.empty(orders_RN.shape, np.int64)
    for step, items in enumerate(orders_RN.T):
        choice = choose(policy, state, contexts[items], uniforms(seed, step, np.arange(runs)))
        state = update(state, choice, rewards[items, choice.arms_B])
        arms[:, step] = choice.arms_B
    return arms
