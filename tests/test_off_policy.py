"""Off-policy estimates against closed forms, and against a world whose truth is known."""

import math

import numpy as np
import pytest

from panoply.bandit.bandits import EpsilonGreedy, Exp3, LinUCB, Thompson
from panoply.bandit.off_policy import (
    Logged,
    NoSupport,
    doubly_robust,
    ips,
    predictions,
    snips,
)
from panoply.bandit.update import choose, init, uniforms, update

SMALL = Logged(
    arms_N=np.array([0, 1, 1, 0]),
    rewards_N=np.array([1.0, 0.5, 0.0, 0.25]),
    propensities_NK=np.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]),
    contexts_ND=np.empty((4, 0)),
    rounds_N=np.array([0, 0, 1, 1]),
)
TARGET = np.array([0.25, 0.75])


def test_the_three_estimates_are_those_of_the_equations():
    w = [0.25 / 0.5, 0.75 / 0.8, 0.75 / 0.5, 0.25 / 0.9]
    r, arms = SMALL.rewards_N.tolist(), [0, 1, 1, 0]
    terms = [a * b for a, b in zip(w, r, strict=True)]
    found = ips(SMALL, TARGET)
    assert found.value == pytest.approx(sum(terms) / 4)
    spread = sum((t - sum(terms) / 4) ** 2 for t in terms) / 3
    assert found.standard_error == pytest.approx(math.sqrt(spread / 4))
    assert found.effective_sample_size == pytest.approx(sum(w) ** 2 / sum(x * x for x in w))
    assert (found.max_weight, found.num, found.num_missing) == (1.5, 4, 0)
    value = sum(terms) / sum(w)
    assert snips(SMALL, TARGET).value == pytest.approx(value)
    squares = sum((a * (b - value)) ** 2 for a, b in zip(w, r, strict=True))
    assert snips(SMALL, TARGET).standard_error == pytest.approx(math.sqrt(squares) / sum(w))
    q = [[0.9, 0.1], [0.4, 0.4], [0.0, 0.3], [0.5, 0.2]]
    robust = [0.25 * q[i][0] + 0.75 * q[i][1] + w[i] * (r[i] - q[i][arms[i]]) for i in range(4)]
    assert doubly_robust(SMALL, TARGET, q).value == pytest.approx(sum(robust) / 4)


def test_the_log_s_own_policy_is_the_mean_reward_with_all_of_its_size():
    own = SMALL.propensities_NK
    for found in (ips(SMALL, own), snips(SMALL, own)):
        assert found.value == pytest.approx(SMALL.rewards_N.mean())
        assert found.effective_sample_size == pytest.approx(4)
    rewards = SMALL.rewards_N
    assert ips(SMALL, own).standard_error == pytest.approx(rewards.std(ddof=1) / 2)
    with pytest.raises(ValueError, match="sum to 1"):
        ips(SMALL, [0.5, 0.6])
    with pytest.raises(ValueError, match="the target must be"):
        ips(SMALL, [[0.5, 0.5]])
    with pytest.raises(ValueError, match="predictions must be"):
        doubly_robust(SMALL, TARGET, [[0.0, 0.0]])


def test_a_target_outside_the_log_is_refused():
    sure = SMALL.propensities_NK.copy()
    sure[1:3] = [0.0, 1.0]
    log = Logged(SMALL.arms_N, SMALL.rewards_N, sure, SMALL.contexts_ND, SMALL.rounds_N)
    for estimate in (ips, snips, lambda *args: doubly_robust(*args, np.zeros((4, 2)))):
        with pytest.raises(NoSupport, match=r"at 2 of 4 decisions .* arms \[0\]"):
            estimate(log, TARGET)
    inside = ips(log, [0.0, 1.0])  # arm 1 alone could have been drawn everywhere
    assert inside.value == pytest.approx((0.5 + 0.0) / 4)


def test_decisions_without_a_reward_are_left_out_and_counted():
    rewards = np.array([1.0, np.nan, 0.0, np.nan])
    log = Logged(SMALL.arms_N, rewards, SMALL.propensities_NK, SMALL.contexts_ND, SMALL.rounds_N)
    found = ips(log, TARGET)
    assert (found.num, found.num_missing) == (2, 2)
    assert found.value == pytest.approx((0.5 * 1.0 + 1.5 * 0.0) / 2)
    nothing = Logged(
        SMALL.arms_N,
        np.full(4, np.nan),
        SMALL.propensities_NK,
        SMALL.contexts_ND,
        SMALL.rounds_N,
    )
    with pytest.raises(ValueError, match="none of 4 decisions has a reward"):
        ips(nothing, TARGET)


def world(seed, num_rounds, policy, batch=8):
    """The log of a bandit that learns, and all arms' chances of a reward at each decision.

    Which arm is best depends on the context.
    """
    rng = np.random.default_rng(seed)
    state, parts, chances = init(policy, 3, 3), [], []
    for step in range(num_rounds):
        domain = rng.integers(3, size=batch)
        contexts = np.eye(3)[domain]
        chance = np.where(np.arange(3) == domain[:, None], 0.8, 0.3)
        choice = choose(policy, state, contexts, uniforms(seed, step, range(batch)))
        rewards = (rng.random(batch) < chance[np.arange(batch), choice.arms_B]) * 1.0
        state = update(state, choice, rewards)
        parts.append((choice.arms_B, rewards, choice.propensities_BK, contexts))
        chances.append(chance)
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Logged(*joined, np.repeat(np.arange(num_rounds), batch)), np.concatenate(chances)


@pytest.mark.parametrize(
    "policy", [Exp3(gamma=0.3), EpsilonGreedy(epsilon=0.4)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("target", ["best arm", "specialists"])
def test_estimates_recover_the_truth_from_the_log_of_a_bandit_that_learns(policy, target):
    found = {"ips": [], "snips": [], "dr": []}
    for seed in range(60):
        log, chances = world(seed, 40, policy)
        supported = (log.propensities_NK > 0).all(1)  # not so while arms have their first pulls
        log, chances = log.at(supported), chances[supported]
        wanted = np.eye(3)[0] if target == "best arm" else log.contexts_ND
        truth = (np.broadcast_to(wanted, chances.shape) * chances).sum(1).mean()
        estimates = {
            "ips": ips(log, wanted),
            "snips": snips(log, wanted),
            "dr": doubly_robust(log, wanted, predictions(log)),
        }
        for name, estimate in estimates.items():
            found[name].append((estimate.value - truth, estimate.standard_error))
    errors = {}
    for name, pairs in found.items():
        error, claimed = np.array(pairs).T
        errors[name] = np.sqrt((error**2).mean())
        assert abs(error.mean()) < 3 * error.std() / math.sqrt(60) + 0.005, name
        assert 0.5 < claimed.mean() / error.std() < 2, name
    assert errors["dr"] < errors["ips"]
    assert errors["snips"] < errors["ips"]


def test_predictions_of_a_round_know_only_the_rounds_before():
    log, _ = world(0, 10, Thompson())
    before = predictions(log)
    changed = Logged(
        log.arms_N,
        np.where(log.rounds_N >= 5, 1 - log.rewards_N, log.rewards_N),
        log.propensities_NK,
        log.contexts_ND,
        log.rounds_N,
    )
    after = predictions(changed)
    assert np.array_equal(before[log.rounds_N <= 5], after[log.rounds_N <= 5])
    assert not np.array_equal(before[log.rounds_N > 5], after[log.rounds_N > 5])
    assert (before[log.rounds_N == 0] == 0).all()


def test_the_log_of_linucb_supports_no_other_arm():
    log, _ = world(0, 30, LinUCB())
    with pytest.raises(NoSupport):
        ips(log, np.eye(3)[0])
