"""From a configuration to the policy that it names, and the state before the first reward."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike

from panoply.bandit.bandits import (
    MOSS,
    UCB1,
    Bandit,
    EpsilonGreedy,
    Exp3,
    FixedArm,
    LinUCB,
    Sequential,
    Thompson,
    Uniform,
)
from panoply.bandit.state import State
from panoply.bandit.update import init
from panoply.config.bandit import BanditConfig, PolicyName, SelectorConfig

POLICIES: dict[PolicyName, Callable[..., Bandit]] = {
    "linucb": LinUCB,
    "thompson": Thompson,
    "ucb1": UCB1,
    "moss": MOSS,
    "epsilon_greedy": EpsilonGreedy,
    "exp3": Exp3,
    "uniform": Uniform,
    "fixed": FixedArm,
    "sequential": Sequential,
}


def make_policy(config: BanditConfig) -> Bandit:
    """Returns the policy, with its own value for whatever the configuration leaves open.

    Raises:
        ValueError: a value that the policy does not take.
    """
    return POLICIES[config.name](**config.given)


def initial_state(
    config: SelectorConfig, num_arms: int, num_features: int, prior_KD: ArrayLike | None = None
) -> State:
    """Returns the state before the first reward, as `panoply.bandit.update.init` makes it.

    Raises:
        ValueError: costs, prior, contexts or a fixed arm that do not fit the arms.
    """
    arm = config.policy.arm
    if arm is not None and not 0 <= arm < num_arms:
        raise ValueError(f"`policy.arm` must be in 0..{num_arms - 1}, got {arm!r}")
    policy, costs = make_policy(config.policy), config.costs or None
    return init(policy, num_arms, num_features, costs_K=costs, prior_KD=prior_KD)
