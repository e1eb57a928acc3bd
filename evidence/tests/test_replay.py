"""The replay of recorded arms counts what its page says, and shows a bandit no more than that."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.bandit import follow, invert
from evidence.bandit_replay import replay
from evidence.planted_arms import draw, right_of_policies, versions
from evidence.replay import (
    agreement,
    arm_rewards,
    ensembles,
    follow_the_leader,
    margins,
    policies,
    read_scores,
    replay_all,
)
from evidence.synthetic_arms import draw_tables, way_to_the_best
from panoply.bandit.bandits import FixedArm

RECORDED = Path(__file__).parents[2] / "../shared/data/arms/rewardmath_scores.parquet"


def write(path, rows, arms):
    """Rows of (item, is_correct, scores)."""
    columns = {
        "item": [row[0] for row in rows],
        "candidate": list(range(len(rows))),
        "is_correct": [row[1] for row in rows],
    }
    columns |= {f"score_{arm}": [row[2][k] for row in rows] for k, arm in enumerate(arms)}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def small(tmp_path):
    """Items of two and three candidates, their rows mixed; one tie, one missing score."""
    nan = math.nan
    rows = [
        ("b", 0, (1.0, 5.0)),
        ("a", 1, (2.0, 0.0)),
        ("b", 1, (1.0, 7.0)),
        ("c", 0, (nan, 3.0)),
        ("a", 0, (1.0, 4.0)),
        ("c", 1, (3.0, 9.0)),
        ("b", 0, (0.0, 6.0)),
    ]
    return read_scores(write(tmp_path / "scores.parquet", rows, ("x", "y")))


def test_an_arm_is_right_strictly_above_and_has_no_answer_where_a_score_is_missing(small):
    assert small.arms == ("x", "y")
    # a: x is right, y is not; b: x ties; c: x misses a score.
    assert np.array_equal(arm_rewards(small), [[1, 0], [0, 1], [np.nan, 1]], equal_nan=True)


def test_ensembles_do_without_an_arm_that_has_no_answer(small):
    found = ensembles(small)
    # a: raw 2 against 5, z and votes one against one; b: y decides; c: y alone.
    assert found["ensemble_raw_sum_costs_k"].tolist() == [0, 1, 1]
    assert found["ensemble_z_score_costs_k"].tolist() == [0, 1, 1]
    assert found["ensemble_agreement_costs_k"].tolist() == [0, 1, 1]


def test_margins_and_agreement_need_no_label_and_no_scale(small):
    found = margins(small)
    # Arm y: gaps 4, 1, 6; squared distances to item means 8 + 2 + 18 over 7 scores, unit 2.
    assert found[:, 1].tolist() == pytest.approx([2 / 3, 1 / 3, 3 / 4])
    assert found[1, 0] == 0
    assert np.isnan(found[2, 0])
    # b: x splits its vote between the first candidate and the right one, which y takes.
    shared = agreement(small)
    assert shared[:2].tolist() == [[0, 0], [0.5, 0.5]]
    assert np.isnan(shared[2, 0])
    assert shared[2, 1] == 0


def test_what_is_no_table_of_scores_is_named(tmp_path):
    pq.write_table(pa.table({"item": [1], "score_x": [0.5]}), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="needs item, candidate, is_correct"):
        read_scores(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"item 'b' .* fewer than two candidates"):
        read_scores(
            write(
                tmp_path / "one.parquet",
                [("a", 1, (1.0,)), ("a", 0, (0.0,)), ("b", 1, (1.0,))],
                ("x",),
            )
        )


def random_table(path, num_items=60, candidates=2):
    rng = np.random.default_rng(0)
    rows = []
    for item in range(num_items):
        for c in range(candidates):
            good = rng.normal(loc=1.0 if c == 0 else 0.0)
            rows.append((item, c == 0, (good, rng.normal(), -good)))
    return read_scores(write(path, rows, ("good", "blind", "wrong")))


@pytest.mark.parametrize("candidates", [2, 5])
def test_every_policy_has_its_figures_and_they_are_repeatable(tmp_path, candidates):
    data = random_table(tmp_path / "t.parquet", candidates=candidates)
    found = replay_all(data, num_orders=6, seed=0)
    assert found == replay_all(data, num_orders=6, seed=0)
    for name, figure in found.items():
        assert set(figure) == {"accuracy", "second_half", "ci95", "shares"}
        assert figure["ci95"][0] <= figure["accuracy"] <= figure["ci95"][1], name
        assert sum(figure["shares"].values()) == pytest.approx(0 if "ensemble" in name else 1)
    assert found["best_single_in_hindsight"] == found["arm:good"]
    assert found["arm:good"]["accuracy"] == pytest.approx(arm_rewards(data)[:, 0].mean())
    assert found["moss"]["accuracy"] > found["uniform"]["accuracy"]
    assert set(policies(60, 3)) < set(found)


def test_a_bandit_sees_the_reward_of_its_own_choice_alone():
    rng = np.random.default_rng(0)
    rewards = (rng.random((80, 3)) < [0.3, 0.6, 0.4]) * 1.0
    orders = np.stack([rng.permutation(80) for _ in range(4)])
    for name, policy in policies(80, 3).items():
        contexts = np.ones((80, 1))
        arms = replay(policy, rewards, orders, contexts_NH=contexts)
        for run in range(4):  # what it did not choose in this run is turned round
            other = 1 - rewards
            other[orders[run], arms[run]] = rewards[orders[run], arms[run]]
            again = replay(policy, other, orders, contexts_NH=contexts)
            assert np.array_equal(again[run], arms[run]), name


def test_the_leader_is_followed_by_what_was_seen_before():
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    arms = follow_the_leader(rewards, np.array([[0, 1, 2, 3], [1, 2, 0, 3]]), seed=0)
    assert arms[0, 1] == 0
    assert arms[0, 3] == 1
    assert arms[1, 1:].tolist() == [1, 1, 1]


def test_the_best_arm_makes_the_whole_way_on_synthetic_tables():
    tables = draw_tables(0, 1, 200, 4)
    whole, half = way_to_the_best(FixedArm(arm=int(tables.mean(1).argmax())), tables)
    assert whole == pytest.approx(1)
    assert half == pytest.approx(1)


def test_ours_chooses_as_inverted_matrices_do():
    rng = np.random.default_rng(0)
    contexts, rewards = rng.normal(size=(60, 12)) / 3, rng.random((60, 4))
    arms, _ = invert(contexts, rewards)
    assert follow(contexts, rewards, arms) == arms[1:]
    assert len(set(arms)) > 1


def test_the_planted_world_conflicts_as_stated_and_has_a_specialist_for_every_domain():
    world = draw(0, conflict=0.5)
    right = arm_rewards(world.data)
    own = np.arange(6) % 3 == world.domain_N[:, None]
    assert right[own].mean() > 0.7
    assert right[~own].mean() < 0.25  # below chance
    alike = versions(world.data, 0)["useless"]
    assert arm_rewards(alike)[:, -1].mean() == pytest.approx(0.25, abs=0.05)
    found, shares = right_of_policies(alike, world, orders=1)
    assert found["linucb"][:, 1].mean() > found["moss_without_context"][:, 1].mean() + 0.1
    assert shares["linucb"][-1] < 0.05


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded scores are in ../shared")
def test_known_figures_of_nine_recorded_arms_come_out_again():
    data = read_scores(RECORDED)
    found = arm_rewards(data).mean(0)
    assert found.max() == pytest.approx(0.3727, abs=1e-4)
    mixed = {name: right.mean() for name, right in ensembles(data).items()}
    assert mixed["ensemble_raw_sum_costs_k"] == pytest.approx(0.1781, abs=1e-4)
    assert mixed["ensemble_z_score_costs_k"] == pytest.approx(0.2340, abs=1e-4)
