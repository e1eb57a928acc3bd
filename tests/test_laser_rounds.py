"""The selector as a plain object: kills, repeats, arrival order and bad numbers change nothing."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

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
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.laser.log import (
    Log,
    LogDiffers,
    column,
    replay,
    state_version,
)
from panoply.laser.rounds import RoundPrompt, initial_state
from panoply.laser.selector_file import recorded_selector
from panoply.laser.signals import PromptOutcome
from tests.builders.selector_runs import (
    ARMS,
    CONFIG,
    make,
    outcomes_of,
    prompts_of,
    run,
    same_log,
    same_state,
)

GOLDEN = Path(__file__).parent / "golden"
BANDITS = [LinUCB(), Thompson(reward_std=0.3), Exp3(), MOSS(horizon=200)]


@pytest.mark.parametrize("bandit", BANDITS, ids=lambda bandit: bandit.kind)
@pytest.mark.parametrize("level", ["prompt", "batch"])
def test_a_selector_that_dies_around_every_call_ends_as_one_that_never_did(tmp_path, bandit, level):
    signal = SignalConfig(name="advantage")
    config = replace(CONFIG, bandit=bandit, level=level, signal=signal)
    calm = run(tmp_path / "calm", range(8), config)
    died = run(
        tmp_path / "died", range(8), config, disturb=lambda *_: make(tmp_path / "died", config)
    )
    assert same_state(calm, died)
    assert same_log(tmp_path / "calm", tmp_path / "died")
    assert calm.signal_state.baseline == died.signal_state.baseline
    assert died.status().replayed_alike


def test_each_decision_and_reward_is_in_the_log_once(tmp_path):
    run(tmp_path, range(6), disturb=lambda *_: make(tmp_path))
    record = Log(str(tmp_path), ARMS).read()
    ids = record.decisions["decision_id"].to_pylist()
    assert sorted(ids) == sorted({prompt.prompt_id for r in range(6) for prompt in prompts_of(r)})
    assert record.rewards["decision_id"].to_pylist() == ids
    assert make(tmp_path).learned().pulls_K.sum() == len(ids)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_a_log_replays_to_the_bits_of_the_live_state(tmp_path):
    selector = run(tmp_path, range(9))
    record = Log(str(tmp_path), ARMS).read()
    replayed = replay(record, initial_state(CONFIG, 3, 5))
    assert all(np.array_equal(a, b) for a, b in zip(replayed, selector.learned(), strict=True))
    assert record.choice(record.decisions).propensities_BK.shape == (72, 3)
    empty = Log(str(tmp_path / "empty"), ARMS).read()
    assert state_version(replay(empty, initial_state(CONFIG, 3, 5))) == state_version(
        initial_state(CONFIG, 3, 5)
    )


def test_a_log_is_read_on_from_what_is_known(tmp_path):
    selector, log, known = make(tmp_path), Log(str(tmp_path), ARMS), None
    for round in range(4):
        decisions = selector.begin_round(round, prompts_of(round), {})
        known = log.read(known)
        selector.end_round(round, outcomes_of(round, decisions))
        if round % 2:
            known = log.read(known)
    whole = log.read()
    assert known.decisions.equals(whole.decisions)
    assert known.rewards.equals(whole.rewards)


def test_order_of_arrival_changes_neither_decisions_nor_rewards(tmp_path):
    rng, selector = np.random.default_rng(0), make(tmp_path / "mixed")
    for round in range(8):
        mixed = [prompts_of(round)[i] for i in rng.permutation(8)]
        decisions = selector.begin_round(round, mixed, {})
        assert [d.prompt_id for d in decisions] == [p.prompt_id for p in mixed]
        selector.end_round(round, [outcomes_of(round, decisions)[i] for i in rng.permutation(8)])
    assert same_state(selector, run(tmp_path / "sorted", range(8)))
    assert same_log(tmp_path / "mixed", tmp_path / "sorted")


def test_all_decisions_of_a_round_are_made_with_the_state_at_its_start(tmp_path):
    selector = run(tmp_path / "a", range(4))
    state = selector.status().state
    selector.begin_round(4, prompts_of(4), {})
    decisions = Log(str(tmp_path / "a"), ARMS).read_segment("decisions", 4)
    assert set(decisions["state"].to_pylist()) == {state}
    alone = make(tmp_path / "b")
    for round in range(4):
        alone.end_round(round, outcomes_of(round, alone.begin_round(round, prompts_of(round), {})))
    some = alone.begin_round(4, prompts_of(4)[2:4], {})
    assert some == selector.decisions(4, ["4-2", "4-3"])


def test_what_is_told_twice_counts_once_and_what_differs_is_refused(tmp_path):
    selector = make(tmp_path)
    decisions = selector.begin_round(0, prompts_of(0), {})
    assert selector.begin_round(0, prompts_of(0), {"bob": "too late"}) == decisions
    with pytest.raises(LogDiffers, match="round 0 began with other prompts"):
        selector.begin_round(0, prompts_of(0)[1:], {})
    outcomes = outcomes_of(0, decisions)
    first = selector.end_round(0, outcomes)
    assert selector.end_round(0, outcomes) == first
    assert make(tmp_path).end_round(0, outcomes) == first
    with pytest.raises(LogDiffers, match="round 0 has ended, with other outcomes"):
        selector.end_round(0, outcomes[1:])
    assert selector.begin_round(0, prompts_of(0), {}) == decisions  # also when it has ended
    assert selector.learned().pulls_K.sum() == 8


def test_rounds_come_one_after_the_other(tmp_path):
    selector = make(tmp_path)
    with pytest.raises(ValueError, match="round 1 cannot begin: round 0 is the next"):
        selector.begin_round(1, prompts_of(1), {})
    with pytest.raises(ValueError, match="round 0 has not begun"):
        selector.end_round(0, [])
    selector.begin_round(0, prompts_of(0), {})
    with pytest.raises(ValueError, match="round 1 cannot begin: round 0 has not ended"):
        selector.begin_round(1, prompts_of(1), {})
    with pytest.raises(ValueError, match="are not of this round"):
        selector.end_round(0, [PromptOutcome(prompt_id="9-9")])
    with pytest.raises(ValueError, match="has not begun"):
        selector.decisions(1, ["1-0"])


def test_a_log_belongs_to_one_configuration(tmp_path):
    run(tmp_path, range(1))
    with pytest.raises(LogDiffers, match="other seed"):
        make(tmp_path, replace(CONFIG, seed=4))
    with pytest.raises(LogDiffers, match="other arms"):
        make(tmp_path, arms=("ann", "cy", "bob"))


def test_a_lost_segment_is_noticed(tmp_path):
    run(tmp_path, range(4))
    (tmp_path / "rewards-00000003.parquet").unlink()
    assert make(tmp_path).status().is_open  # as after a kill between the two
    (tmp_path / "decisions-00000001.parquet").unlink()
    with pytest.raises(ValueError, match="lacks decisions-00000001"):
        make(tmp_path)


def test_a_segment_that_was_half_written_is_none(tmp_path):
    selector = run(tmp_path, range(2))
    whole = (tmp_path / "decisions-00000001.parquet").read_bytes()
    (tmp_path / "decisions-00000002.parquet.0f.part").write_bytes(whole[:99])
    assert make(tmp_path).status() == selector.status()
    run(tmp_path, range(2, 3))
    assert same_state(make(tmp_path), run(tmp_path / "calm", range(3)))


def test_prompts_that_do_not_fit_are_named(tmp_path):
    selector, good = make(tmp_path), prompts_of(0)
    with pytest.raises(ValueError, match=r"different ids.*'0-1'"):
        selector.begin_round(0, [*good, good[1]], {})
    bad = [replace(p, context_H=p.context_H * np.nan) if i == 2 else p for i, p in enumerate(good)]
    with pytest.raises(ValueError, match=r"prompts \['0-2'\]"):
        selector.begin_round(0, bad, {})
    with pytest.raises(ValueError, match="contexts must be"):
        selector.begin_round(0, [RoundPrompt("a", "", [1.0])], {})
    with pytest.raises(ValueError, match="cannot suspend"):
        selector.begin_round(0, good, {"dan": "unknown"})
    assert not selector.status().is_open
    assert not list(tmp_path.glob("decisions-*"))


@pytest.mark.parametrize("signal", ["negative_loss", "advantage", "improvement", "verifier"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 0.5])
def test_bad_constant_or_missing_measurements_poison_nothing(tmp_path, signal, value):
    selector = make(tmp_path, replace(CONFIG, signal=SignalConfig(name=signal)))
    for round in range(6):
        outcomes = [
            PromptOutcome(prompt_id=d.prompt_id, loss=value, loss_after=value, verifier=value)
            for d in selector.begin_round(round, prompts_of(round), {})
        ]
        selector.end_round(round, outcomes[round:])
    rewards = column(Log(str(tmp_path), ARMS).read().rewards, "reward")
    assert not np.isinf(rewards).any()
    assert all(np.isfinite(part).all() for part in selector.learned())
    assert selector.learned().visits_K.sum() == 48
    assert same_state(selector, make(tmp_path, selector.config))


def failing(decisions, arm, reason="out of memory"):
    told = {True: {"failure": reason}, False: {"verifier": 0.5}}
    return [PromptOutcome(prompt_id=d.prompt_id, **told[d.arm == arm]) for d in decisions]


def test_an_arm_that_fails_is_suspended_with_its_reason_and_comes_back(tmp_path):
    config = replace(CONFIG, bandit=Uniform(), suspend_rounds=3)
    selector, chosen = make(tmp_path, config), []
    for round in range(6):
        decisions = selector.begin_round(round, prompts_of(round, 32), {})
        chosen.append({d.arm for d in decisions})
        told = failing(decisions, "bob" if round == 1 else "nobody")
        status = selector.end_round(round, told)
        if round == 1:
            (away,) = status.suspended
            num = sum(d.arm == "bob" for d in decisions)
            assert away.arm == "bob"
            assert away.until == 5
            assert away.reason == f"{num} failed in round 1, the first with: out of memory"
        selector = make(tmp_path, config)
        assert selector.status() == status
    assert ["bob" in arms for arms in chosen] == [True, True, False, False, False, True]
    decisions = Log(str(tmp_path), ARMS).read_segment("decisions", 2)
    assert decisions["suspended"][0].as_py()[0]["arm"] == "bob"
    assert selector.learned().rejected_K[1] > 0


def test_a_request_suspends_an_arm_and_survives_the_actor(tmp_path):
    config = replace(CONFIG, bandit=Uniform(), suspend_rounds=2)
    selector, chosen = make(tmp_path, config), []
    for round in range(4):
        requests = {"ann": "its scores rise, the gold margin does not"} if round == 1 else {}
        decisions = selector.begin_round(round, prompts_of(round, 32), requests)
        selector = make(tmp_path, config)
        chosen.append({d.arm for d in decisions})
        selector.end_round(round, outcomes_of(round, decisions))
    assert ["ann" in arms for arms in chosen] == [True, False, False, True]


def test_where_every_arm_failed_the_round_still_has_one(tmp_path):
    config = replace(CONFIG, bandit=Uniform())
    selector = make(tmp_path, config)
    for round in range(4):
        decisions = selector.begin_round(round, prompts_of(round, 32), {})
        selector.end_round(
            round, [PromptOutcome(prompt_id=d.prompt_id, failure="no network") for d in decisions]
        )
    assert selector.learned().rejected_K.sum() == 128
    fixed = replace(CONFIG, bandit=FixedArm(arm=1))
    selector = make(tmp_path / "fixed", fixed)
    for round in range(2):
        decisions = selector.begin_round(round, prompts_of(round), {})
        selector.end_round(round, failing(decisions, "bob"))
        assert {d.arm for d in decisions} == {"bob"}


def test_a_batch_has_one_decision_on_its_mean_context_and_one_reward(tmp_path):
    config = replace(CONFIG, level="batch")
    selector = make(tmp_path, config)
    decisions = selector.begin_round(0, prompts_of(0), {})
    assert len({d.arm for d in decisions}) == 1
    outcomes = outcomes_of(0, decisions)
    outcomes[3] = replace(outcomes[3], verifier=math.nan)
    selector.end_round(0, outcomes)
    record = Log(str(tmp_path), ARMS).read()
    assert record.rewards.num_rows == record.decisions.num_rows == 1
    mean = np.mean([p.context_H for p in prompts_of(0)], axis=0)
    assert np.allclose(record.decisions["context"][0].as_py(), mean)
    right = [o.verifier for o in outcomes if not math.isnan(o.verifier)]
    assert record.rewards_N[0] == pytest.approx(sum(right) / len(right))
    assert selector.learned().pulls_K.sum() == 1


def test_the_better_arm_is_learned_over_rounds(tmp_path):
    selector = run(tmp_path, range(40), replace(CONFIG, bandit=MOSS(horizon=320)))
    assert selector.learned().pulls_K.argmax() == 1
    assert selector.learned().pulls_K[1] > 200


def test_segments_are_plain_parquet(tmp_path):
    run(tmp_path, range(1))
    rows = pq.read_table(tmp_path / "decisions-00000000.parquet").to_pylist()
    assert [row["prompt_ids"] for row in rows] == [[f"0-{i}"] for i in range(8)]
    assert rows[0]["propensity"] == rows[0]["probabilities"][ARMS.index(rows[0]["arm"])]
    rewards = pq.read_table(tmp_path / "rewards-00000000.parquet").to_pylist()
    assert rewards[0]["signal"] == "verifier"
    assert rewards[0]["reward"] == rewards[0]["signal_verifier"] == rewards[0]["verifier"]
    assert rewards[0]["signal_held_out"] is None


def test_names_of_columns_in_files_are_those_of_older_logs(tmp_path):
    run(tmp_path, range(1))
    decisions = pq.read_table(tmp_path / "decisions-00000000.parquet").column_names
    rewards = pq.read_table(tmp_path / "rewards-00000000.parquet").column_names
    golden = GOLDEN / "laser_log"
    assert decisions == pq.read_table(golden / "decisions-00000000.parquet").column_names
    assert rewards == pq.read_table(golden / "rewards-00000000.parquet").column_names


def test_a_log_of_version_1_is_continued_as_if_nothing_had_been_renamed(tmp_path):
    shutil.copytree(GOLDEN / "laser_log", tmp_path / "old")
    assert recorded_selector(str(tmp_path / "old")) == (CONFIG, ARMS, 5)
    run(tmp_path / "old", range(6, 8))
    run(tmp_path / "new", range(8))
    old, new = (Log(str(tmp_path / name), ARMS).read() for name in ("old", "new"))
    # A state's version is a hash of floats, whose last bits depend on the processor.
    assert old.decisions.drop_columns("state").equals(new.decisions.drop_columns("state"))
    assert old.rewards.equals(new.rewards)
    with pytest.raises(LogDiffers, match="other bandit"):
        make(tmp_path / "old", replace(CONFIG, bandit=LinUCB(alpha=2.0)))


@pytest.mark.parametrize(
    ("policy", "bandit"),
    [
        (
            {"name": "thompson", "noise": 0.25, "strength": 2.0, "first_pulls": None},
            Thompson(reward_std=0.25, prior_precision=2.0),
        ),
        ({"name": "moss", "horizon": 9, "scale": None}, MOSS(horizon=9)),
        (
            {"name": "epsilon_greedy", "epsilon": 0.2, "first_pulls": 3},
            EpsilonGreedy(epsilon=0.2, min_pulls=3),
        ),
        ({"name": "fixed", "arm": 1}, FixedArm(arm=1)),
        ({"name": "sequential", "span": 4}, Sequential(period=4)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_renamed_setting_of_version_1_is_read(tmp_path, policy, bandit):
    record = json.loads((GOLDEN / "laser_log" / "selector.json").read_text())
    record["policy"], record["signal"]["name"] = policy, "probe"
    (tmp_path / "selector.json").write_text(json.dumps(record))
    config, *_ = recorded_selector(str(tmp_path))
    signal = SignalConfig(name="gold_margin")
    assert config == SelectorConfig(bandit=bandit, signal=signal, seed=3)


def test_every_kind_of_bandit_is_recorded_and_read(tmp_path):
    for bandit in (*BANDITS, Uniform(), FixedArm(arm=2), Sequential(), UCB1(), EpsilonGreedy()):
        config = replace(CONFIG, bandit=bandit)
        make(tmp_path / bandit.kind, config)
        assert recorded_selector(str(tmp_path / bandit.kind)) == (config, ARMS, 5)
