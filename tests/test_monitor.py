"""Curves are those of the log, and alarms are right."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from actors.bandit import BanditActor
from panoply.bandit.bandits import Uniform
from panoply.config.bandit import AlarmConfig, SelectorConfig, SignalConfig
from panoply.laser.log import DECISIONS, REWARDS, Log, Record
from panoply.laser.monitor import (
    alarms,
    arm_values,
    regret,
    rise,
    series,
    stop_requests,
    suspension_requests,
)
from panoply.laser.rounds import RoundPrompt
from panoply.laser.signals import PromptOutcome, correlations

ARMS = ("org/ann", "bob")


def record_of(rows, arms=ARMS):
    """A log from (round, arm, sources, what was measured)."""
    decisions, rewards = [], []
    for i, (round, arm, sources, measured) in enumerate(rows):
        own = {"round": round, "decision_id": str(i), "arm": arm}
        chance = [1 / len(arms)] * len(arms)
        decisions.append(own | {"sources": sources, "probabilities": chance})
        rewards.append(own | measured)
    tables = (
        pa.Table.from_pylist(part, schema=schema)
        for part, schema in ((decisions, DECISIONS), (rewards, REWARDS))
    )
    return Record(arms, *tables)


def test_shares_count_prompts_in_all_and_by_source():
    found = series(
        record_of(
            [
                (0, "org/ann", ["math"], {}),
                (0, "bob", ["math", "math", "chat"], {}),
                (1, "org/ann", [""], {}),
            ]
        )
    )
    assert found["round"].tolist() == [0, 1]
    assert found["share/org/ann"].tolist() == [0.25, 1]
    assert found["share/bob"].tolist() == [0.75, 0]
    assert found["share_in/math/org/ann"].tolist() == pytest.approx([1 / 3, math.nan], nan_ok=True)
    assert found["share_in/chat/bob"].tolist() == pytest.approx([1, math.nan], nan_ok=True)
    assert found["uncertainty"].tolist() == pytest.approx([1, 1])


def test_errors_and_regret_are_those_of_plain_arithmetic():
    values = [(0, "org/ann", 0.5), (0, "bob", 0.9), (1, "bob", 0.7), (1, "org/ann", 0.1)]
    values += [(2, "org/ann", math.nan), (2, "org/ann", 0.3)]
    rows = [(r, arm, [""], {"reward": None if math.isnan(x) else x}) for r, arm, x in values]
    found = series(record_of(rows))
    ann = [0.5, 0.1, 0.3]
    errors = [math.nan, np.std(ann[:2], ddof=1) / math.sqrt(2), np.std(ann, ddof=1) / math.sqrt(3)]
    assert found["error/org/ann"].tolist() == pytest.approx(errors, nan_ok=True)
    # bob has .8 in the mean, ann .3; ann was chosen 1, 1 and 2 times.
    assert found["regret"].tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert found["failed"].tolist() == [0, 0, 0.5]
    assert found["reward"].tolist() == pytest.approx([0.7, 0.4, 0.3])
    assert arm_values([0, 0, 1], [1.0, 0.0, math.nan], 2).tolist() == pytest.approx(
        [0.5, math.nan], nan_ok=True
    )
    assert regret([0, 1, 1], [0.5, 0.2]).tolist() == pytest.approx([0, 0.3, 0.6])
    assert regret([0, 1], [math.nan, 0.2]).tolist() == [0, 0]


def test_a_proxy_is_on_each_arm_s_own_scale():
    rows = [(r, "org/ann", [""], {"proxy": 1000.0 + r % 2}) for r in range(10)]
    rows += [(r, "bob", [""], {"proxy": -3.0 + 0.001 * (r % 2)}) for r in range(10, 20)]
    proxy = series(record_of(rows))["proxy"]
    assert proxy.tolist() == pytest.approx([-1.0, 1.0] * 10)


def test_a_rise_is_welch_s_statistic():
    before, after = [1.0, 2.0, 4.0, math.nan], [3.0, 5.0]
    error = math.sqrt(np.var(before[:3], ddof=1) / 3 + np.var(after, ddof=1) / 2)
    assert rise(before, after) == pytest.approx((4 - 7 / 3) / error)
    assert rise([1.0, 1.0], [2.0, 2.0]) == math.inf
    assert rise([1.0, 1.0], [1.0, 1.0]) == 0
    assert math.isnan(rise([1.0], [2.0, 3.0]))


def story(num=40, seed=0, **curves):
    """A log of `num` rounds of four decisions, mostly bob's, with measurements by round."""
    rng, rows = np.random.default_rng(seed), []
    for round in range(num):
        for i in range(4):
            noise = 0.1 * rng.normal(size=3)
            told = {
                "proxy": 0.0,
                "gold_margin_gain": 0.0,
                "length": 300.0,
                "kl": 0.1,
                "reward": 0.5,
            }
            told |= {"well_formed": 0.9}
            told |= {name: float(curve(round)) for name, curve in curves.items()}
            told["proxy"] += noise[0]
            told["gold_margin_gain"] += 0.01 * noise[1]
            told["length"] += 10 * noise[2]
            rows.append((round, "org/ann" if i == 0 else "bob", [""], told))
    return series(record_of(rows))


CONFIG = AlarmConfig()


def names(found):
    return [alarm.name for alarm in found]


def test_a_calm_run_raises_no_alarm():
    raised = [names(alarms(story(num, seed=num), ARMS, CONFIG)) for num in range(5, 60, 5)]
    assert raised == [[]] * len(raised)


def test_scores_that_rise_while_the_gold_margin_is_flat_are_called_hacking():
    (found,) = alarms(story(proxy=lambda r: 0.05 * r), ARMS, CONFIG)
    assert (found.name, found.action, found.arm, found.round) == ("hacking", "suspend", "bob", 39)
    (reason,) = suspension_requests([found]).values()
    assert reason.startswith("hacking: scores rose by")
    falls = story(proxy=lambda r: 0.05 * r, gold_margin_gain=lambda r: -0.05)
    assert names(alarms(falls, ARMS, CONFIG)) == ["hacking"]
    both = story(proxy=lambda r: 0.05 * r, gold_margin_gain=lambda r: 0.05)
    assert alarms(both, ARMS, CONFIG) == []
    unknown = story(proxy=lambda r: 0.05 * r, gold_margin_gain=lambda r: math.nan)
    assert alarms(unknown, ARMS, CONFIG) == []


def test_drift_of_length_format_and_kl_and_lost_rewards_are_told():
    def told(**curves):
        return names(alarms(story(**curves), ARMS, CONFIG))

    assert told(length=lambda r: 300 + 10 * r) == ["length"]
    assert told(length=lambda r: 300 - 7 * r) == ["length"]
    assert told(well_formed=lambda r: 0.9 - 0.02 * r) == ["format"]
    assert told(kl=lambda r: 0.05 * r) == ["kl"]
    assert told(reward=lambda r: math.nan if r > 20 else 0.5) == ["failed"]
    found = alarms(story(kl=lambda r: 0.05 * r), ARMS, CONFIG)
    assert stop_requests(found) == found
    gentle = replace(CONFIG, kl="warn")
    assert stop_requests(alarms(story(kl=lambda r: 0.05 * r), ARMS, gentle)) == []


def test_nothing_is_called_wrong_before_there_is_a_window():
    early = {"kl": lambda r: 9.0, "proxy": lambda r: 0.5 * r}
    assert alarms(story(9, **early), ARMS, CONFIG) == []
    assert names(alarms(story(19, **early), ARMS, CONFIG)) == ["kl"]
    assert alarms(series(record_of([])), ARMS, CONFIG) == []


def test_an_alarm_s_request_suspends_the_arm_in_the_selector(tmp_path):
    config = SelectorConfig(bandit=Uniform(), signal=SignalConfig(name="advantage"))
    selector = BanditActor(config, ARMS, 0, str(tmp_path), None)
    suspended: set[str] = set()
    for round in range(30):
        found = alarms(series(Log(str(tmp_path), ARMS).read()), ARMS, CONFIG)
        suspended |= set(suspension_requests(found))
        decisions = selector.begin_round(
            round, [RoundPrompt(str(i)) for i in range(4)], suspension_requests(found)
        )
        assert not {d.arm for d in decisions} & set(suspension_requests(found))
        selector.end_round(
            round,
            [
                PromptOutcome(
                    prompt_id=d.prompt_id, loss=1.0, proxy=0.1 * round, gold_margin_gain=0.0
                )
                for d in decisions
            ],
        )
    assert suspended


def test_a_signal_s_correlation_is_with_quality_over_decisions_that_have_both():
    rng = np.random.default_rng(0)
    quality = rng.normal(size=200)
    signals = {
        "good": quality + 0.1 * rng.normal(size=200),
        "noise": rng.normal(size=200),
        "reversed": -quality,
        "constant": np.ones(200),
    }
    signals["good"][:50] = np.nan
    found = correlations(signals, quality, np.arange(200) // 4)
    assert found["good"]["spearman"] > 0.95
    assert found["good"]["n"] == 150
    low, high = found["noise"]["ci95"]
    assert low < 0 < high
    assert found["reversed"]["spearman"] == pytest.approx(-1)
    assert math.isnan(found["constant"]["spearman"])
