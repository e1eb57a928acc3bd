"""Each policy beside its closed form in plain Python, and beside mabwiser on the same log."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from panoply.bandit.arm_statistics import ArmStatistics
from panoply.bandit.bandits import MOSS, UCB1, EpsilonGreedy, Exp3, LinUCB, Sequential, Thompson
from panoply.bandit.router import fit_router
from panoply.bandit.update import Choice, init, select_arms, uniforms, update


def history(num=400, num_arms=3, size=5, seed=0):
    """Arms and rewards of a log, contexts of unit length."""
    rng = np.random.default_rng(seed)
    contexts = rng.normal(size=(num, size))
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    arms = rng.integers(num_arms, size=num)
    even = np.full((num, num_arms), 1 / num_arms)
    return Choice(contexts, arms, even), rng.random(num)


def statistics(state, query):
    """Statistics at contexts, for which all arms are available."""
    return ArmStatistics(state, query, np.ones((len(query), len(state.costs_K)), bool))


def context_free(choice):
    return choice._replace(contexts_BD=np.empty((len(choice.arms_B), 0)))


def test_linucb_holds_the_ridge_solution_and_its_width():
    choice, rewards = history()
    policy = LinUCB(alpha=0.7, ridge=2.0)
    state = update(init(policy, 3, 5), choice, rewards)
    query = np.random.default_rng(1).normal(size=(4, 5))
    mean, deviation = statistics(state, query).linear_posterior()
    for k in range(3):
        x, r = choice.contexts_BD[choice.arms_B == k], rewards[choice.arms_B == k]
        inverse = np.linalg.inv(2.0 * np.eye(5) + x.T @ x)
        assert np.allclose(state.inverse_KDD[k], inverse, atol=1e-10)
        assert np.allclose(mean[:, k], query @ inverse @ x.T @ r, atol=1e-10)
        assert np.allclose(deviation[:, k] ** 2, np.diag(query @ inverse @ query.T), atol=1e-10)
    best = (mean + 0.7 * deviation).argmax(1)
    assert (select_arms(policy, state, query, [0.1] * 4).arms_B == best).all()


def test_ten_thousand_updates_of_rank_one_do_not_drift():
    choice, rewards = history(num=10_000, num_arms=1, size=64)
    state = update(init(LinUCB(), 1, 64), choice, rewards)
    exact = np.linalg.inv(np.eye(64) + choice.contexts_BD.T @ choice.contexts_BD)
    assert np.allclose(state.inverse_KDD[0], exact, rtol=0, atol=1e-10)


def test_thompson_has_the_posterior_of_a_normal_prior():
    choice, rewards = history()
    prior = np.random.default_rng(2).normal(size=(3, 5))
    policy = Thompson(reward_std=0.3, prior_precision=4.0)
    state = update(init(policy, 3, 5, prior_KD=prior), choice, rewards)
    query = np.random.default_rng(1).normal(size=(4, 5))
    mean, deviation = statistics(state, query).linear_posterior()
    for k in range(3):
        x, r = choice.contexts_BD[choice.arms_B == k], rewards[choice.arms_B == k]
        precision = 4.0 * np.eye(5) + x.T @ x / 0.3**2
        mu = np.linalg.solve(precision, 4.0 * prior[k] + x.T @ r / 0.3**2)
        assert np.allclose(mean[:, k], query @ mu, atol=1e-10)
        spread = np.diag(query @ np.linalg.inv(precision) @ query.T)
        assert np.allclose((0.3 * deviation[:, k]) ** 2, spread, atol=1e-10)


def test_probabilities_of_the_best_arm_are_those_of_many_draws_of_the_weights():
    choice, rewards = history(num=30)
    policy, rng = Thompson(), np.random.default_rng(0)
    state = update(init(policy, 3, 5), choice, rewards)
    query = rng.normal(size=(1, 5))
    drawn = np.stack(
        [
            rng.multivariate_normal(inverse @ b, policy.reward_std**2 * inverse, 200_000) @ query[0]
            for inverse, b in zip(state.inverse_KDD, state.moments_KD, strict=True)
        ]
    )
    frequency = np.bincount(drawn.argmax(0), minlength=3) / 200_000
    found = select_arms(policy, state, query, [0.5]).propensities_BK[0]
    assert np.abs(found - frequency).max() < 0.004


def test_probabilities_of_the_best_of_two_are_in_closed_form_within_the_stated_error():
    rng = np.random.default_rng(0)
    mean, spread = rng.normal(size=(500, 2)), 10 ** rng.uniform(-3, 1, (500, 2))
    found = statistics(init(UCB1(), 2), np.empty((500, 0))).largest(mean, spread)
    for (m0, m1), (s0, s1), p in zip(mean, spread, found, strict=True):
        exact = (1 + math.erf((m0 - m1) / math.hypot(s0, s1) / math.sqrt(2))) / 2
        assert abs(p[0] - exact) <= 1 / 64
    five = statistics(init(UCB1(), 5), np.empty((1, 0)))
    even = five.largest(np.zeros((1, 5)), np.ones((1, 5)))
    assert np.allclose(even, 0.2, atol=1e-12)


def test_a_context_of_zero_tells_thompson_nothing():
    state = update(init(Thompson(), 3, 5), *history())
    found = select_arms(Thompson(), state, np.zeros((1, 5)), [0.5]).propensities_BK
    assert np.allclose(found, 1 / 3)


def test_a_wrong_prior_washes_out():
    policy, rng = Thompson(reward_std=0.3, prior_precision=4.0), np.random.default_rng(0)
    state = init(policy, 2, 1, prior_KD=[[1.0], [-1.0]])  # the truth is the other way round
    first = select_arms(policy, state, [[1.0]], [0.5]).propensities_BK[0]
    for step in range(500):
        choice = select_arms(policy, state, [[1.0]], uniforms(0, step, [0]))
        state = update(state, choice, (rng.random(1) < [0.2, 0.8][choice.arms_B[0]]) * 1.0)
    last = select_arms(policy, state, [[1.0]], [0.5]).propensities_BK[0]
    assert first[0] > 0.99
    assert last[1] > 0.9


def test_ucb1_takes_the_largest_index_by_hand():
    choice = Choice(np.empty((6, 0)), np.array([0, 0, 0, 1, 1, 2]), np.full((6, 3), 1 / 3))
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    state = update(init(UCB1(), 3), choice, rewards)
    for alpha in (0.0, 0.3, 1.0, math.sqrt(2), 3.0):
        pulls, means = (3, 2, 1), (2 / 3, 1 / 2, 0.0)
        index = [m + alpha * math.sqrt(math.log(6) / n) for m, n in zip(means, pulls, strict=True)]
        found = select_arms(UCB1(alpha=alpha), state, None, [0.5]).arms_B[0]
        assert found == max(range(3), key=lambda k: index[k])


def test_moss_takes_the_largest_index_by_hand():
    arms = np.array([0, 0, 0, 1, 1, 2])
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    choice = Choice(np.empty((6, 0)), arms, np.full((6, 3), 1 / 3))
    state = update(init(UCB1(), 3), choice, rewards)
    deviation = math.sqrt((sum((r - 0.5) ** 2 for r in rewards) + 0.25) / 7)
    assert state.deviation[0] == pytest.approx(deviation)
    for scale in (0.0, 0.5, 1.0, 3.0):
        index = [
            m + scale * deviation * math.sqrt(max(math.log(12 / (3 * n)), 0) / n)
            for m, n in zip((2 / 3, 1 / 2, 0.0), (3, 2, 1), strict=True)
        ]
        found = select_arms(MOSS(horizon=12, scale=scale), state, None, [0.5]).arms_B[0]
        assert found == max(range(3), key=lambda k: index[k])


def test_moss_stops_exploring_an_arm_after_its_share_of_the_horizon():
    choice = Choice(np.empty((4, 0)), np.array([0, 0, 1, 1]), np.full((4, 2), 0.5))
    state = update(init(MOSS(horizon=4), 2), choice, [1.0, 1.0, 1.0, 0.0])
    behind = update(state, choice._replace(arms_B=np.zeros(4, int)), [1.0, 0.0, 1.0, 0.0])
    short = select_arms(MOSS(horizon=4, scale=9), behind, None, [0.5]).propensities_BK[0]
    assert short.tolist() == [1, 0]  # greedy: n_k = T / K
    late = select_arms(MOSS(horizon=10_000), behind, None, [0.5]).propensities_BK[0]
    assert late.tolist() == [0, 1]  # there is time to look at arm 1 again


def test_exp3_takes_the_papers_step_by_hand_and_its_estimates_are_unbiased():
    policy = Exp3(gamma=0.2)
    state, weights, rng = init(policy, 3), [1.0, 1.0, 1.0], np.random.default_rng(0)
    for step in range(50):
        choice = select_arms(policy, state, None, uniforms(0, step, [0]))
        p = [0.8 * w / sum(weights) + 0.2 / 3 for w in weights]
        assert np.allclose(choice.propensities_BK[0], p, atol=1e-12)
        arm, reward = choice.arms_B[0], rng.random()
        weights[arm] *= math.exp(0.2 * reward / p[arm] / 3)
        state = update(state, choice, [reward])
    # Over all arms that could have been drawn, the mean estimate is the arm's own reward.
    rewards, mean = np.array([0.3, 0.9, 0.0]), np.zeros(3)
    choice = select_arms(policy, state, None, [0.5])
    for arm in range(3):
        drawn = choice._replace(arms_B=np.array([arm]))
        gain = update(state, drawn, rewards[[arm]]).gains_K - state.gains_K
        mean += choice.propensities_BK[0, arm] * gain
    assert np.allclose(mean, rewards, atol=1e-12)


def test_epsilon_greedy_gives_epsilon_to_all_and_the_rest_to_the_best():
    state = update(init(EpsilonGreedy(), 3), context_free(history()[0]), history()[1])
    best = state.mean_K.argmax()
    found = select_arms(EpsilonGreedy(epsilon=0.3), state, None, [0.5]).propensities_BK[0]
    assert np.allclose(found, 0.1 + 0.7 * (np.arange(3) == best))


def test_sequential_takes_turns_and_skips_suspended_arms():
    policy, arms = Sequential(period=2), []
    state = init(policy, 3)
    for step in range(8):
        available = [True, step != 3, True]
        choice = select_arms(policy, state, None, [0.5], available)
        state = update(state, choice, [0.0])
        arms.append(int(choice.arms_B[0]))
    assert arms == [0, 0, 1, 2, 2, 2, 0, 0]


def test_a_router_learns_who_is_right_where_and_speeds_up_thompson():
    rng = np.random.default_rng(0)
    domain = rng.integers(3, size=600)
    contexts = np.eye(3)[domain] + 0.1 * rng.normal(size=(600, 3))
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    right = (rng.random((600, 3)) < np.where(np.arange(3) == domain[:, None], 0.9, 0.3)) * 1.0
    right[rng.random((600, 3)) < 0.1] = np.nan
    prior = fit_router(contexts[:300], right[:300])
    assert np.allclose(np.linalg.norm(prior, axis=1), 1)
    assert ((contexts @ prior.T).argmax(1) == domain).mean() > 0.95
    early = {}
    for told, given in (("prior", prior), ("none", None)):
        state = init(Thompson(), 3, 3, prior_KD=given)
        chances = select_arms(Thompson(), state, contexts[300:], uniforms(0, 0, range(300)))
        early[told] = chances.propensities_BK[np.arange(300), domain[300:]].mean()
    assert early["none"] == pytest.approx(1 / 3)
    assert early["prior"] > 0.45


def test_the_router_has_the_direction_of_the_optimum_of_its_loss():
    rng = np.random.default_rng(0)
    h, right = rng.normal(size=(40, 2)), (rng.random((40, 3)) < 0.5) * 1.0

    def loss(flat):
        e = flat.reshape(3, 2)
        terms = [
            math.log1p(math.exp(-float(h[n] @ (e[i] - e[j]))))
            for n in range(40)
            for i in range(3)
            for j in range(3)
            if right[n, i] > right[n, j]
        ]
        return math.fsum(terms) / len(terms) + 0.05 * float((e**2).sum())

    best = minimize(loss, np.zeros(6), options={"gtol": 1e-8}).x.reshape(3, 2)
    unit = best / np.linalg.norm(best, axis=1, keepdims=True)
    assert np.allclose(fit_router(h, right, strength=0.1), unit, atol=1e-4)
    # A smaller lead counts as often as it is smaller: half of it on a prompt that is there twice.
    twice, half = np.concatenate([h, h]), np.concatenate([right, right]) / 2
    assert np.allclose(fit_router(twice, half, strength=0.1), unit, atol=1e-4)
    leads = np.where(np.arange(40)[:, None] < 20, right, right / 2)
    weighed = np.concatenate([h[:20], h]), np.concatenate([right[:20], right])
    assert np.allclose(fit_router(h, leads), fit_router(*weighed), atol=1e-4)


mabwiser = pytest.importorskip("mabwiser.mab", reason="mabwiser is not installed")


def fitted(policy, choice, rewards):
    """Its bandit on the same log; contexts as they are, arms by number."""
    bandit = mabwiser.MAB(arms=[0, 1, 2], learning_policy=policy)
    bandit.fit(choice.arms_B.tolist(), rewards.tolist(), choice.contexts_BD)
    return bandit


def test_linucb_expects_what_mabwiser_expects():
    choice, rewards = history()
    theirs = fitted(mabwiser.LearningPolicy.LinUCB(alpha=0.7, l2_lambda=2.0), choice, rewards)
    state = update(init(LinUCB(ridge=2.0), 3, 5), choice, rewards)
    query = np.random.default_rng(1).normal(size=(20, 5))
    mean, deviation = statistics(state, query).linear_posterior()
    expected = [[row[k] for k in range(3)] for row in theirs.predict_expectations(query)]
    assert np.allclose(mean + 0.7 * deviation, expected, atol=1e-10)
    ours = select_arms(LinUCB(alpha=0.7, ridge=2.0), state, query, [0.5] * 20).arms_B
    assert ours.tolist() == theirs.predict(query)


def test_ucb1_expects_what_mabwiser_expects_under_another_name_of_the_constant():
    # Its index is mean + alpha sqrt(2 ln N / n): our alpha is sqrt(2) of its.
    choice, rewards = history(num=50)
    bandit = mabwiser.MAB(arms=[0, 1, 2], learning_policy=mabwiser.LearningPolicy.UCB1(alpha=0.5))
    bandit.fit(choice.arms_B.tolist(), rewards.tolist())
    state = update(init(UCB1(), 3), context_free(choice), rewards)
    bonus = 0.5 * math.sqrt(2) * np.sqrt(math.log(50) / state.pulls_K)
    expected = bandit.predict_expectations()
    assert np.allclose(state.mean_K + bonus, [expected[k] for k in range(3)], atol=1e-12)
    ours = select_arms(UCB1(alpha=0.5 * math.sqrt(2)), state, None, [0.5])
    assert ours.arms_B[0] == bandit.predict()


def test_thompson_draws_with_the_moments_of_mabwiser():
    # Its draws have covariance alpha^2 A^-1, A = l2_lambda I + sum x x^T: alpha is our reward_std
    # and l2_lambda our ridge, prior_precision reward_std^2. Only moments of single arms are
    # compared: its arms draw from copies of one generator, so their draws go together (correlation
    # .97 or more here) and it hardly explores. Its `ThompsonSampling` is Beta-Bernoulli, another
    # algorithm; it has neither Exp3 nor MOSS.
    choice, rewards = history(num=40)
    policy = Thompson(reward_std=0.5, prior_precision=4.0)
    theirs = fitted(mabwiser.LearningPolicy.LinTS(alpha=0.5, l2_lambda=1.0), choice, rewards)
    state = update(init(policy, 3, 5), choice, rewards)
    query = np.tile(np.random.default_rng(1).normal(size=(1, 5)), (4000, 1))
    drawn = np.array([[row[k] for k in range(3)] for row in theirs.predict_expectations(query)])
    mean, deviation = statistics(state, query[:1]).linear_posterior()
    spread = 0.5 * deviation[0]
    assert np.abs(drawn.mean(0) - mean[0]).max() < 4 * spread.max() / math.sqrt(4000)
    assert np.allclose(drawn.std(0), spread, rtol=0.05)
    assert np.corrcoef(drawn.T).min() > 0.9
