"""The value of one arm from a bandit's log: closed form, and worlds whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from panoply.bandit.bandits import EpsilonGreedy, Exp3, LinUCB, Uniform
from panoply.bandit.off_policy import snips
from panoply.bandit.update import Choice, init, select_arms, uniforms, update
from panoply.laser.log import Log
from tests.builders.selector_runs import ARMS, CONFIG, run
from workflows.cluster.laser_results import off_policy_metrics

PROPENSITIES = [[0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]
SMALL = Choice(np.empty((5, 0)), np.array([0, 1, 1, 0, 1]), np.array(PROPENSITIES))
REWARDS = [1.0, 0.5, 0.0, 0.25, 0.75]


def test_an_estimate_is_that_of_the_equations_in_plain_python():
    w = [1 / 0.8, 1 / 0.5, 1 / 0.75]
    r = [0.5, 0.0, 0.75]
    value = sum(a * b for a, b in zip(w, r, strict=True)) / sum(w)
    squares = sum((a * (b - value)) ** 2 for a, b in zip(w, r, strict=True))
    estimate = snips(SMALL, REWARDS, 1)
    assert estimate.value == pytest.approx(value)
    assert estimate.standard_error == pytest.approx(math.sqrt(squares) / sum(w))
    assert estimate.effective_sample_size == pytest.approx(sum(w) ** 2 / sum(x * x for x in w))
    assert estimate.support == 1
    assert estimate.bandit_value == pytest.approx(sum(REWARDS) / 5)


def test_an_arm_that_is_drawn_every_time_has_the_mean_reward_with_all_of_its_size():
    always = Choice(np.empty((4, 0)), np.zeros(4, int), np.tile([1.0, 0.0], (4, 1)))
    estimate = snips(always, REWARDS[:4], 0)
    assert estimate.value == pytest.approx(sum(REWARDS[:4]) / 4)
    assert estimate.effective_sample_size == pytest.approx(4)
    never = snips(always, REWARDS[:4], 1)
    assert math.isnan(never.value)
    assert (never.support, never.effective_sample_size) == (0, 0)


def test_only_decisions_that_could_have_drawn_the_arm_count_and_the_share_is_told():
    sure = SMALL.propensities_BK.copy()
    sure[1:3] = [0.0, 1.0]
    log = SMALL._replace(propensities_BK=sure)
    estimate = snips(log, REWARDS, 0)
    assert estimate.support == pytest.approx(3 / 5)
    w = [1 / 0.5, 1 / 0.9, 0.0]
    value = (w[0] * 1.0 + w[1] * 0.25) / sum(w)
    assert estimate.value == pytest.approx(value)
    assert estimate.bandit_value == pytest.approx((1.0 + 0.25 + 0.75) / 3)


def test_an_arm_that_could_have_been_drawn_and_never_was_has_no_value():
    log = SMALL._replace(arms_B=np.ones(5, int))
    estimate = snips(log, REWARDS, 0)
    assert math.isnan(estimate.value)
    assert (estimate.support, estimate.effective_sample_size) == (1, 0)


def test_decisions_without_a_reward_are_left_out():
    rewards = [1.0, math.nan, 0.0, math.nan, 0.75]
    estimate = snips(SMALL, rewards, 1)
    w = [1 / 0.5, 1 / 0.75]
    assert estimate.value == pytest.approx((w[0] * 0.0 + w[1] * 0.75) / sum(w))
    assert estimate.support == 1
    nothing = snips(SMALL, [math.nan] * 5, 1)
    assert math.isnan(nothing.value)
    assert nothing.support == 0


def world(seed, num_rounds, bandit, batch=8):
    """The log of a bandit that learns; which arm is best depends on the context."""
    rng = np.random.default_rng(seed)
    state, choices, rewards, chances = init(bandit, 3, 3), [], [], []
    for step in range(num_rounds):
        domain = rng.choice(3, size=batch, p=[0.5, 0.3, 0.2])
        contexts = np.eye(3)[domain]
        chance = np.where(np.arange(3) == domain[:, None], 0.8, 0.3)
        choice = select_arms(bandit, state, contexts, uniforms(seed, step, range(batch)))
        reward = (rng.random(batch) < chance[np.arange(batch), choice.arms_B]) * 1.0
        state = update(state, choice, reward)
        choices.append(choice)
        rewards.append(reward)
        chances.append(chance)
    joined = Choice(*(np.concatenate(part) for part in zip(*choices, strict=True)))
    return joined, np.concatenate(rewards), np.concatenate(chances)


@pytest.mark.parametrize(
    "bandit", [Exp3(gamma=0.3), EpsilonGreedy(epsilon=0.4)], ids=lambda b: b.kind
)
@pytest.mark.parametrize("arm", range(3))
def test_estimates_recover_the_truth_from_the_log_of_a_bandit_that_learns(bandit, arm):
    errors, claims = [], []
    for seed in range(60):
        choice, rewards, chances = world(seed, 40, bandit)
        estimate = snips(choice, rewards, arm)
        supported = choice.propensities_BK[:, arm] > 0  # not so while arms have their first pulls
        errors.append(estimate.value - chances[supported, arm].mean())
        claims.append(estimate.standard_error)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(60) + 0.005
    assert 0.5 < np.mean(claims) / np.std(errors) < 2


def test_a_bandit_that_looks_at_the_prompt_is_better_than_the_best_arm_of_a_planted_log():
    # 0.8 in its own domain and 0.3 elsewhere: the best fixed arm has .5 x .8 + .5 x .3 = .55.
    rng = np.random.default_rng(0)
    domain = rng.choice(3, size=6000, p=[0.5, 0.3, 0.2])
    propensities = np.full((6000, 3), 0.1)
    propensities[np.arange(6000), domain] = 0.8
    arms = (rng.random(6000)[:, None] > propensities.cumsum(1)).sum(1)
    rewards = (rng.random(6000) < np.where(arms == domain, 0.8, 0.3)) * 1.0
    choice = Choice(np.empty((6000, 0)), arms, propensities)
    estimates = [snips(choice, rewards, arm) for arm in range(3)]
    for estimate, share in zip(estimates, (0.5, 0.3, 0.2), strict=True):
        truth = 0.3 + 0.5 * share
        assert abs(estimate.value - truth) < 3 * estimate.standard_error
        assert estimate.bandit_value == pytest.approx(0.8 * 0.8 + 0.2 * 0.3, abs=0.03)
    best = estimates[0]
    assert best.bandit_value - best.value > 1.96 * best.standard_error


def test_the_log_of_linucb_supports_little_but_its_own_choices():
    choice, rewards, _ = world(0, 30, LinUCB())
    supports = [snips(choice, rewards, arm).support for arm in range(3)]
    assert sum(supports) < 1.5


def test_metrics_of_a_run_hold_the_bandit_beside_every_arm(tmp_path):
    run(tmp_path, range(60), replace(CONFIG, bandit=Uniform()))
    record = Log(str(tmp_path), ARMS).read()
    metrics = off_policy_metrics(record)
    rewards = record.rewards_N
    assert metrics["num"] == len(rewards) == 480
    assert metrics["mean"] == pytest.approx(rewards.mean())
    chances = {"ann": 0.2, "bob": 0.9, "cy": 0.4}  # of a reward, by construction
    arms = np.array(record.rewards["arm"].to_pylist())
    for arm, chance in chances.items():
        entry = metrics["arms"][arm]
        drawn = rewards[arms == arm]
        # With equal propensities SNIPS is the plain mean over the decisions that drew the arm.
        assert entry["value"] == pytest.approx(drawn.mean())
        assert entry["ess"] == pytest.approx(len(drawn))
        assert (entry["support"], entry["bandit_value"]) == (1, metrics["mean"])
        low, high = entry["ci95"]
        assert abs(entry["value"] - chance) < 3 * (high - low) / (2 * 1.96)
    assert metrics["arms"]["bob"]["ci95"][0] > metrics["mean"]
