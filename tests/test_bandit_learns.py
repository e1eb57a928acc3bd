"""Bandits on toy problems: no lock on equal arms, away from useless ones, to the specialist."""

import numpy as np
import pytest
from scipy.stats import chisquare

from evidence.bandit_replay import replay
from panoply.bandit.bandits import (
    MOSS,
    UCB1,
    EpsilonGreedy,
    Exp3,
    LinUCB,
    Sequential,
    Thompson,
    Uniform,
)
from panoply.bandit.update import init, select_arms, uniforms, update
from panoply.laser.rewards import advantages


def name(policy):
    return type(policy).__name__


def toy(chances, num_runs, num_steps, seed=0):
    """Rewards `[N, K]` of items that each run meets once, and the orders."""
    rng = np.random.default_rng(seed)
    num = num_runs * num_steps
    rewards = (rng.random((num, len(chances))) < chances) * 1.0
    return rewards, np.arange(num).reshape(num_runs, num_steps)


def shares(arms_RN, num_arms):
    return np.stack([(arms_RN == k).mean(1) for k in range(num_arms)], axis=1)


@pytest.mark.parametrize("policy", [LinUCB(alpha=1), UCB1(), Exp3()], ids=name)
def test_of_identical_arms_none_takes_over_and_none_is_favored_by_its_place(policy):
    rewards, orders = toy([0.5] * 4, num_runs=100, num_steps=400)
    rng = np.random.default_rng(1)
    contexts = np.concatenate([np.ones((40_000, 1)), 0.1 * rng.normal(size=(40_000, 5))], axis=1)
    pulled = shares(replay(policy, rewards, orders, contexts_NH=contexts), 4)
    assert pulled.max(1).mean() < 0.6
    assert pulled.mean(0).max() < 0.35
    assert chisquare(np.bincount(pulled.argmax(1), minlength=4)).pvalue > 0.01


@pytest.mark.parametrize("policy", [LinUCB(alpha=1), UCB1(), Exp3()], ids=name)
def test_identical_arms_stay_equal_while_the_loss_falls(policy):
    # The setting in which LASeR's released code locks on one arm in 99.6 % of the steps.
    rng, pulled = np.random.default_rng(0), []
    for run in range(4):
        state, baseline = init(policy, 4, 4), float("nan")
        for step in range(400):
            context = 0.5 + 0.05 * rng.normal(size=(1, 4))
            choice = select_arms(policy, state, context, uniforms(run, step, [0]))
            loss = 2 * 0.99**step + 0.1 * rng.normal(size=1)
            reward, baseline = advantages(-loss, baseline)
            state = update(state, choice, reward)
        pulled.append(state.pulls_K / state.pulls_K.sum())
    assert np.max(pulled, axis=1).mean() < 0.6


@pytest.mark.parametrize(
    "policy",
    [LinUCB(), Thompson(), UCB1(), MOSS(horizon=400), EpsilonGreedy(), Exp3()],
    ids=name,
)
def test_the_share_of_a_useless_arm_decays(policy):
    rewards, orders = toy([0.6, 0.6, 0.1, 0.6], num_runs=20, num_steps=400)
    arms = replay(policy, rewards, orders, contexts_NH=np.ones((len(rewards), 1)))
    early, late = shares(arms[:, :40], 4)[:, 2].mean(), shares(arms[:, -100:], 4)[:, 2].mean()
    assert late < 0.7 * early
    assert late < 0.15


@pytest.mark.parametrize(
    "policy",
    [LinUCB(), Thompson(), UCB1(), MOSS(horizon=400), EpsilonGreedy(), Exp3()],
    ids=name,
)
def test_the_better_arm_is_found_wherever_it_stands(policy):
    for best in range(3):
        rewards, orders = toy(np.where(np.arange(3) == best, 0.8, 0.4), 8, 400, seed=best)
        arms = replay(policy, rewards, orders, contexts_NH=np.ones((len(rewards), 1)))
        late = shares(arms[:, -100:], 3).mean(0)
        assert late.argmax() == best
        assert late[best] > 0.5


def specialists(num=600, sigma=0.0, useless=False, seed=0):
    """Four candidates an item, arms that see quality in their own domain and its reverse elsewhere.

    Returns scores `[N, C, K]`, whether each arm is right `[N, K]`, and contexts that tell domains.
    """
    rng = np.random.default_rng(seed)
    domain = rng.integers(3, size=num)
    quality = rng.normal(size=(num, 4))
    sign = np.where(np.arange(3) == domain[:, None], 1.0, -0.5)
    scores = sign[:, None] * quality[..., None] + 0.4 * rng.normal(size=(num, 4, 3))
    if useless:
        scores = np.concatenate([scores, rng.normal(size=(num, 4, 1))], axis=2)
    scores += sigma * rng.normal(size=scores.shape)
    right = (scores.argmax(1) == quality.argmax(1)[:, None]) * 1.0
    contexts = np.eye(3)[domain] + 0.1 * rng.normal(size=(num, 3))
    return scores, right, quality.argmax(1), contexts


@pytest.mark.parametrize("policy", [LinUCB(), Thompson()], ids=name)
def test_contexts_find_specialists_where_one_arm_random_arms_and_all_arms_do_worse(policy):
    scores, right, best, contexts = specialists()
    orders = np.stack([np.random.default_rng(s).permutation(600) for s in range(4)])

    def accuracy(policy):
        arms = replay(policy, right, orders, contexts_NH=contexts)
        return right[orders, arms].mean()

    z = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    ensemble = (z.sum(2).argmax(1) == best).mean()
    contextual = accuracy(policy)
    assert contextual > right.mean(0).max() + 0.1
    assert contextual > accuracy(Uniform()) + 0.1
    assert contextual > accuracy(Sequential()) + 0.1
    assert contextual > ensemble + 0.05


def test_a_useless_arm_barely_costs_a_contextual_bandit():
    found = {}
    for useless in (False, True):
        _, right, _, contexts = specialists(num=1200, useless=useless)
        orders = np.stack([np.random.default_rng(s).permutation(1200) for s in range(3)])
        for policy in (LinUCB(), Uniform()):
            arms = replay(policy, right, orders, contexts_NH=contexts)
            found[name(policy), useless] = right[orders, arms].mean()
    cost = {p: found[p, False] - found[p, True] for p in ("LinUCB", "Uniform")}
    assert cost["LinUCB"] < 0.03
    assert cost["LinUCB"] < cost["Uniform"] + 0.03


def test_a_reward_that_never_comes_stops_no_replay():
    rewards, orders = toy([0.3, 0.7], num_runs=4, num_steps=100)
    rewards[np.random.default_rng(0).random(rewards.shape) < 0.2] = np.nan
    arms = replay(UCB1(), rewards, orders)
    assert shares(arms[:, 50:], 2).mean(0)[1] > 0.5
