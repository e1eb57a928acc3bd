"""Ensembles of arms, prompts by round and recorded scores, against plain Python."""

import asyncio
import math
from dataclasses import replace
from statistics import mean, pstdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoply.bandit.bandits import FixedArm, Sequential, Uniform
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.config.laser import ArmsConfig, LaserConfig, PromptsConfig
from panoply.data.read import Input
from panoply.data.tasks import read_tasks, rounds_of, split_held_out, synthetic_prompts
from panoply.laser.ensembles import best_arms, best_of, chosen_scores
from panoply.scorers.recorded import RecordedScorer
from panoply.wire.request import Chat

NAN = math.nan
ARMS = ArmsConfig(models=("a=function:m:a", "b=function:m:b"))


def sign(x):
    return (x > 0) - (x < 0)


def test_ensembles_are_what_their_equations_say():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(3, 5)).round(1) * [[1], [100], [0.01]]
        rows = scores.tolist()
        z = [[(s - mean(row)) / pstdev(row) for s in row] for row in rows]
        wanted = [mean(column) for column in zip(*z, strict=True)]
        np.testing.assert_allclose(chosen_scores("mean", scores), wanted)
        wanted = [mean(column) for column in zip(*rows, strict=True)]
        np.testing.assert_allclose(chosen_scores("mean_raw", scores), wanted)
        votes = [
            sum(sign(sum(sign(row[i] - row[j]) for row in rows)) for j in range(5))
            for i in range(5)
        ]
        assert chosen_scores("agreement", scores).tolist() == votes


def test_an_arm_that_failed_is_left_out_and_a_missing_score_stays_missing():
    scores = [[1.0, 2.0, 3.0], [NAN, NAN, NAN], [3.0, NAN, 1.0]]
    for name in ("mean", "mean_raw", "agreement"):
        found = chosen_scores(name, scores)
        assert np.isnan(found).tolist() == [False, True, False]
        assert np.isnan(chosen_scores(name, [[NAN, NAN]] * 2)).all()
    assert chosen_scores("mean_raw", scores)[[0, 2]].tolist() == [2.0, 2.0]
    assert chosen_scores("mean", [[5.0, 5.0], [1.0, 2.0]]).tolist() == [-0.5, 0.5]
    with pytest.raises(ValueError, match="ensemble"):
        chosen_scores("median", scores)


def test_an_oracle_takes_the_best_arm_of_each_source_and_the_best_of_all_where_it_knows_none():
    verified = [[1.0, 0.0], [0.5, NAN], [0.0, 1.0], [NAN, NAN]]
    assert best_arms(["x", "x", "y", "z"], verified) == {"x": 0, "y": 1, "z": 0}


def test_the_best_is_the_first_of_equals_and_never_one_that_failed():
    assert best_of([NAN, 1.0, 1.0]) == 1
    assert best_of([NAN, NAN]) == 0


def test_rounds_pass_over_all_prompts_whatever_their_order():
    tasks = synthetic_prompts(20, 0)
    train, held_out = split_held_out(tasks, 5, 1)
    assert len(held_out) == 5
    assert split_held_out(tasks[::-1], 5, 1) == (train, held_out)
    rounds = list(rounds_of(train, 5, 6, 1))
    assert list(rounds_of(train[::-1], 5, 6, 1)) == rounds
    for start in (0, 3):
        ids = [task.prompt_id for part in rounds[start : start + 3] for task in part]
        assert sorted(ids) == sorted(task.prompt_id for task in train)
    assert rounds[:3] != rounds[3:]
    with pytest.raises(ValueError, match="`prompts_per_round` is 16, but 15 prompts"):
        next(rounds_of(train, 16, 1, 1))
    with pytest.raises(ValueError, match="num_held_out"):
        split_held_out(tasks, 20, 1)


def test_prompts_are_read_from_a_file_once_each(tmp_path):
    rows = [
        {"prompt": "Name a prime.", "answer": "2", "source": "math"},
        {"prompt": "name  a prime.", "answer": "3", "source": "math"},
        {"prompt": "Hello?", "answer": None, "source": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    found = read_tasks(Input(tmp_path / "mine.parquet"))
    assert [(task.label, task.source) for task in found] == [("2", "math"), (None, "mine")]
    (tmp_path / "bad.jsonl").write_text('{"prompt": []}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 1: missing prompt"):
        read_tasks(Input(tmp_path / "bad.jsonl"))


def test_a_recording_answers_what_it_holds_and_nothing_else(tmp_path):
    turns = [{"role": "user", "content": "Hello?"}]
    rows = [
        {"prompt": turns, "response": "Yes.", "score": 2.5},
        {"prompt": turns, "response": "No.", "score": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    arm = RecordedScorer(str(tmp_path / "scores.parquet"))
    (told,) = asyncio.run(arm.score([Chat(tuple(turns), ("No.", "Yes.", "Perhaps."))]))
    assert [one.score for one in told] == [None, 2.5, None]
    assert "has no score of this response" in told[2].error
    pq.write_table(pa.table({"prompt": ["a"], "score": [1.0]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="no column 'response'"):
        RecordedScorer(str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ("laser", "fixed:c")}, "strategies"),
        ({"strategies": ("laser", "laser")}, "strategies"),
        ({"num_samples": 1}, "`num_samples` must be"),
        ({"strategies": ("oracle",), "prompts": PromptsConfig(verifier="")}, "verifier"),
        ({"strategies": ("laser_verified",), "prompts": PromptsConfig(verifier="")}, "verifier"),
        (
            {"strategies": ("classifier",)},
            "`num_calibration_prompts` must be positive with the strategies",
        ),
        ({"strategies": ("bayesian_router",)}, "`num_calibration_prompts` must be positive"),
        ({"num_calibration_prompts": 4, "prompts": PromptsConfig(verifier="")}, "verifier"),
        ({"num_calibration_prompts": -1}, "num_calibration_prompts"),
        (
            {"selector": SelectorConfig(signal=SignalConfig(name="agreement"))},
            "score_with_all_arms",
        ),
        (
            {"selector": SelectorConfig(signal=SignalConfig(name="gold_margin"))},
            "`gold_pairs` must be a file",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        LaserConfig(arms=ARMS, **changes)
    with pytest.raises(ValueError, match="names other than 'verifier'"):
        ArmsConfig(models=("verifier=function:m:a",))


def test_each_strategy_has_its_selector():
    config = LaserConfig(arms=ARMS, selector=SelectorConfig(level="batch"))
    told = {n: config.selector_of(n) for n in ("laser", "random", "fixed:b", "mean", "oracle")}
    assert told["laser"] == config.selector
    verified = config.selector_of("laser_verified")
    assert verified == replace(config.selector, signal=SignalConfig(name="verifier"))
    assert told["random"].bandit == Uniform()
    assert told["fixed:b"].bandit == FixedArm(arm=1)
    both = (config.selector_of(name) for name in ("thompson", "bayesian_router"))
    assert next(both) == next(both)
    assert config.selector_of("classifier") is None
    assert told["mean"] is None
    assert told["oracle"] is None
    assert config.selector_of("sequential").bandit == Sequential(period=3)
