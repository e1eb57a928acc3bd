"""Whatever the policy: exact propensities, no trace of arrival order, no poison, no lost state."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from panoply.bandit.bandits import (
    MOSS,
    UCB1,
    EpsilonGreedy,
    Exp3,
    FixedArm,
    LinUCB,
    Sequential,
    Thompson,
    Uniform,
)
from panoply.bandit.state import State
from panoply.bandit.update import Choice, init, project, projection, select_arms, uniforms, update

LEARNING = [
    LinUCB(),
    Thompson(),
    UCB1(),
    MOSS(horizon=100),
    EpsilonGreedy(),
    Exp3(),
]
ALL = [*LEARNING, Uniform(), FixedArm(arm=1), Sequential()]


def name(policy):
    return type(policy).__name__


def play(policy, num_steps=40, num_arms=4, seed=0):
    """A state after some rewards, and the log that led to it."""
    rng = np.random.default_rng(seed)
    state, log = init(policy, num_arms, 3), []
    for step in range(num_steps):
        choice = select_arms(policy, state, rng.normal(size=(1, 3)), uniforms(seed, step, [0]))
        rewards = rng.random(1)
        state = update(state, choice, rewards)
        log.append((choice, rewards))
    return state, log


def joined(log):
    choices, rewards = zip(*log, strict=True)
    parts = [np.concatenate(part) for part in zip(*choices, strict=True)]
    return Choice(*parts), np.concatenate(rewards)


def assert_equal(one, other):
    for field, a, b in zip(State._fields, one, other, strict=True):
        assert np.array_equal(a, b), field


@pytest.mark.parametrize("policy", ALL, ids=name)
def test_propensities_sum_to_one_and_are_the_frequencies_of_the_arms(policy):
    state, _ = play(policy)
    num = 20_000
    contexts = np.tile([0.3, -0.2, 0.5], (num, 1))
    choice = select_arms(policy, state, contexts, uniforms(1, 0, np.arange(num)))
    assert np.allclose(choice.propensities_BK.sum(1), 1, atol=1e-12)
    expected = choice.propensities_BK[0] * num
    counts = np.bincount(choice.arms_B, minlength=4)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    assert seen.sum() == 1 or chisquare(counts[seen], expected[seen]).pvalue > 0.01


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_permuting_the_arms_permutes_the_propensities(policy):
    state, _ = play(policy)
    order = np.array([2, 0, 3, 1])
    moved = State(*(part[order] for part in state[:8]), state.projection_HD)
    contexts, draws = np.random.default_rng(1).normal(size=(50, 3)), uniforms(0, 0, range(50))
    before = select_arms(policy, state, contexts, draws).propensities_BK
    after = select_arms(policy, moved, contexts, draws).propensities_BK
    assert np.allclose(after, before[:, order], atol=1e-12)


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_arms_of_which_nothing_is_known_share_the_first_decisions(policy):
    state = init(policy, 4, 3)
    choice = select_arms(policy, state, np.ones((4000, 3)), uniforms(0, 0, range(4000)))
    assert np.allclose(choice.propensities_BK, 0.25)
    assert chisquare(np.bincount(choice.arms_B, minlength=4)).pvalue > 0.01


@pytest.mark.parametrize(
    "policy",
    [LinUCB(), LinUCB(min_pulls=0), UCB1(), MOSS(horizon=100), EpsilonGreedy(), Exp3()],
    ids=name,
)
def test_arms_of_equal_history_share_a_decision_whatever_their_place(policy):
    arms = np.array([0, 1, 2, 0, 1, 2])
    even = Choice(np.ones((6, 3)), arms, np.full((6, 3), 1 / 3))
    if not project(init(policy, 3, 3), np.ones((1, 3))).shape[1]:
        even = even._replace(contexts_BD=np.empty((6, 0)))
    state = update(init(policy, 3, 3), even, [0.2, 0.9, 0.9, 0.6, 0.5, 0.5])
    found = select_arms(policy, state, np.ones((1, 3)), [0.5]).propensities_BK[0]
    assert found[1] == found[2] > found[0]
    if isinstance(policy, LinUCB | UCB1 | MOSS):
        assert found.tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("policy", [LinUCB(min_pulls=3), UCB1(min_pulls=3)], ids=name)
def test_every_arm_is_pulled_first(policy):
    state = play(policy, num_steps=12)[0]
    assert state.pulls_K.tolist() == [3, 3, 3, 3]


def test_arrival_order_changes_no_draw():
    ids = ["b", "a", "d", "c"]
    draws = dict(zip(ids, uniforms(3, 7, ids), strict=True))
    alone = {i: uniforms(3, 7, [i])[0] for i in sorted(ids)}
    assert draws == alone
    assert len({*uniforms(3, 7, ids), *uniforms(3, 8, ids), *uniforms(4, 7, ids)}) == 12


def test_draws_are_even_and_unrelated_across_seeds_rounds_and_decisions():
    draws = np.stack([uniforms(seed, r, range(500)) for seed in range(4) for r in range(5)])
    assert draws.min() > 0  # (0, 0, 0) is no special place
    assert chisquare(np.histogram(draws, bins=50, range=(0, 1))[0]).pvalue > 0.01
    along = np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]
    across = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(along) < 0.03  # three standard errors at 10,000 draws
    assert abs(across) < 0.03


@pytest.mark.parametrize("policy", ALL, ids=name)
def test_a_replayed_log_gives_the_live_state_in_any_batches(policy):
    state, log = play(policy)
    choice, rewards = joined(log)
    for cuts in ([], [7], [1, 2, 30]):
        replayed = init(policy, 4, 3)
        for rows in np.split(np.arange(len(rewards)), cuts):
            part = Choice(*(field[rows] for field in choice))
            replayed = update(replayed, part, rewards[rows])
        assert_equal(replayed, state)


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_a_batch_sees_one_state_and_its_rewards_may_come_late(policy):
    rng = np.random.default_rng(0)
    state, waiting = init(policy, 3, 2), []
    for step in range(60):
        contexts = rng.normal(size=(8, 2))
        choice = select_arms(policy, state, contexts, uniforms(0, step, range(8)))
        alone = select_arms(policy, state, contexts[5:6], uniforms(0, step, [5]))
        assert alone.arms_B[0] == choice.arms_B[5]
        waiting.append((choice, (rng.random(8) < (choice.arms_B == 1) * 0.8).astype(float)))
        if step >= 5:
            state = update(state, *waiting.pop(0))
    last = select_arms(policy, state, rng.normal(size=(500, 2)), uniforms(1, 0, range(500)))
    assert state.pulls_K.sum() == 55 * 8
    assert state.pulls_K.argmax() == 1 or isinstance(policy, LinUCB | Thompson)  # no intercept
    assert np.isfinite(last.propensities_BK).all()


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_rewards_that_are_no_reward_are_counted_and_change_nothing_else(policy):
    state, log = play(policy)
    choice, _ = joined(log[:5])
    poisoned = update(state, choice, [np.nan, np.inf, -np.inf, 1.5, -7.0])
    assert poisoned.rejected_K.tolist() == np.bincount(choice.arms_B, minlength=4).tolist()
    assert_equal(poisoned._replace(rejected_K=state.rejected_K), state)


@pytest.mark.parametrize("policy", LEARNING, ids=name)
@pytest.mark.parametrize("reward", [np.nan, 0.5, 0.0, -1.0])
def test_a_reward_that_never_changes_or_never_comes_locks_nothing(policy, reward):
    state = init(policy, 3, 1)
    for step in range(300):
        choice = select_arms(policy, state, np.ones((1, 1)), uniforms(0, step, [0]))
        # Arm 0 gives always the same, the others give .9 or .1.
        rewards = np.where(choice.arms_B == 0, reward, [0.0, 0.9, 0.1][choice.arms_B[0]])
        state = update(state, choice, rewards)
    assert all(np.isfinite(part).all() for part in state)
    assert state.visits_K.argmax() == 1


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_a_suspended_arm_is_not_chosen_and_comes_back(policy):
    state, _ = play(policy)
    contexts, draws = np.zeros((400, 3)), uniforms(0, 0, range(400))
    for arm in range(4):
        available = np.arange(4) != arm
        choice = select_arms(policy, state, contexts, draws, available)
        assert (choice.propensities_BK[:, arm] == 0).all()
        assert (choice.arms_B != arm).all()
    only = select_arms(policy, state, contexts, draws, np.eye(4, dtype=bool)[np.arange(400) % 4])
    assert (only.arms_B == np.arange(400) % 4).all()


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_a_cost_moves_pulls_to_the_cheaper_of_equal_arms(policy):
    rng, costs = np.random.default_rng(0), [0.4, 0.0]
    state = init(policy, 2, 1, costs_K=costs)
    for step in range(300):
        choice = select_arms(policy, state, np.ones((1, 1)), uniforms(0, step, [0]))
        state = update(state, choice, (rng.random(1) < 0.7).astype(float))
    assert state.pulls_K[1] > 2 * state.pulls_K[0]
    assert state.mean_K[0] < state.mean_K[1]


@pytest.mark.parametrize("policy", LEARNING, ids=name)
def test_files_keep_every_bit_of_a_state(policy, tmp_path):
    state, _ = play(policy)
    np.savez(tmp_path / "state.npz", **state._asdict())
    with np.load(tmp_path / "state.npz") as arrays:
        assert_equal(State(**arrays), state)


def test_update_leaves_the_state_before_as_it_was():
    state, log = play(LinUCB())
    kept = State(*(part.copy() for part in state))
    update(state, *log[0])
    assert_equal(state, kept)


@pytest.mark.parametrize("policy", ALL, ids=name)
def test_runs_side_by_side_are_the_runs_alone(policy):
    rng = np.random.default_rng(0)
    contexts, rewards = rng.normal(size=(30, 5, 3)), rng.random((30, 5, 4))
    together = init(policy, 4, 3, num_runs=5)
    alone = [init(policy, 4, 3) for _ in range(5)]
    for step in range(30):
        draws = uniforms(0, step, range(5))
        choice = select_arms(policy, together, contexts[step], draws)
        gained = rewards[step, np.arange(5), choice.arms_B]
        together = update(together, choice, gained)
        for run in range(5):
            one = select_arms(policy, alone[run], contexts[step, [run]], draws[[run]])
            assert one.arms_B[0] == choice.arms_B[run]
            alone[run] = update(alone[run], one, gained[[run]])
    for run in range(5):
        assert np.array_equal(together.pulls_K[run], alone[run].pulls_K)
        assert np.allclose(together.gains_K[run], alone[run].gains_K, rtol=1e-12)
        assert np.allclose(together.inverse_KDD[run], alone[run].inverse_KDD, atol=1e-12)


def test_long_contexts_are_projected_by_a_fixed_matrix_that_keeps_lengths():
    rng = np.random.default_rng(0)
    state = init(LinUCB(), 2, 576)
    x = rng.normal(size=(200, 576))
    seen = project(state, x)
    assert seen.shape == (200, 64)
    assert np.array_equal(init(Thompson(), 5, 576).projection_HD, state.projection_HD)
    ratio = np.linalg.norm(seen, axis=1) / np.linalg.norm(x, axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.12  # 1 / sqrt(2 * 64) in theory
    assert np.array_equal(projection(3, 3), np.eye(3))


def test_what_does_not_fit_is_named():
    state = init(LinUCB(), 3, 2)
    with pytest.raises(ValueError, match=r"contexts must be \[B, 2\]"):
        select_arms(LinUCB(), state, np.ones((1, 3)), [0.5])
    with pytest.raises(ValueError, match=r"decisions \[1\] are not finite"):
        select_arms(LinUCB(), state, [[1.0, 2.0], [np.nan, 0.0]], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"no arm is available for decisions \[0\]"):
        select_arms(LinUCB(), state, np.ones((1, 2)), [0.5], [False] * 3)
    with pytest.raises(ValueError, match="do not match"):
        select_arms(LinUCB(), state, np.ones((2, 2)), [0.5])
    with pytest.raises(ValueError, match="a constant 1 will do"):
        init(LinUCB(), 3)
    with pytest.raises(ValueError, match="num_arms must be at least 1"):
        init(UCB1(), 0)
    with pytest.raises(ValueError, match="costs must be 3 numbers"):
        init(UCB1(), 3, costs_K=[0.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="only Thompson takes a prior"):
        init(LinUCB(), 2, 1, prior_KD=[[1.0], [0.0]])
    with pytest.raises(ValueError, match=r"finite numbers \[2, 1\]"):
        init(Thompson(), 2, 1, prior_KD=[[1.0], [np.nan]])
    with pytest.raises(ValueError, match="must be one that is available"):
        select_arms(FixedArm(arm=2), init(FixedArm(arm=2), 2), None, [0.5])
    choice = select_arms(LinUCB(), state, np.ones((1, 2)), [0.5])
    with pytest.raises(ValueError, match="do not match"):
        update(state, choice, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"arms must be in 0\.\.2"):
        update(state, choice._replace(arms_B=np.array([3])), [0.5])
    with pytest.raises(ValueError, match="is the log intact"):
        update(state, choice._replace(propensities_BK=np.zeros((1, 3))), [0.5])


@pytest.mark.parametrize(
    ("policy", "field", "value"),
    [
        (LinUCB(), "alpha", -1.0),
        (LinUCB(), "ridge", 0.0),
        (Thompson(), "reward_std", float("nan")),
        (UCB1(), "min_pulls", 0),
        (MOSS(horizon=1), "horizon", 0),
        (EpsilonGreedy(), "epsilon", 1.1),
        (Exp3(), "gamma", 0.0),
        (Sequential(), "period", 0),
    ],
)
def test_a_constant_out_of_its_range_is_named(policy, field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        replace(policy, **{field: value})
