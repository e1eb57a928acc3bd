"""Scores that an arm did not give because it was down are asked for again by the same command."""

import math
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest

from panoply.config.laser import VERIFIER
from panoply.data.tasks import Task
from panoply.laser.rollout import Rollout, read_rollouts, summed_truncation, write_rollouts
from panoply.wire.request import ModelAnswer, RequestError, Score
from workflows.cluster.arms import Arms
from workflows.cluster.laser_results import StrategyRun
from workflows.cluster.rollouts import RolloutCollector

NAMES = ("up", "down", "broken")
TASKS = [Task(str(i), [{"role": "user", "content": f"q{i}"}], None, "s") for i in range(2)]


def answer(value, num=2):
    return ModelAnswer(model="m", items=((Score(score=value),) * num,))


@contextmanager
def collector(timeout=5.0, **asks):
    """A collector without samplers, whose arms answer as these functions do; and who was asked."""
    asked = []

    def ask_of(name, respond):
        async def ask(request):
            asked.append(name)
            return respond()

        return ask

    arms = Arms({name: ask_of(name, respond) for name, respond in asks.items()}, timeout)
    try:
        yield RolloutCollector((), arms, NAMES, 8, True, 0), asked
    finally:
        arms.close()


def rollouts():
    return [Rollout(task=task, scorers=NAMES) for task in TASKS]


@pytest.fixture
def file(tmp_path):
    """Samples of two prompts: one arm answered, one was down, one can never answer."""
    file = tmp_path / "samples.parquet"
    nan = np.full(2, np.nan)
    write_rollouts(
        file,
        [
            Rollout(
                task=task,
                responses=("a", "b"),
                ended=(True, True),
                verdict_n=nan,
                score_Kn=np.array([[1.0, 2.0], nan, nan]),
                failures={"down": "no answer within 5 s", "broken": "no such column"},
                transient=frozenset({"down", VERIFIER}),
            )
            for task in TASKS
        ],
        NAMES,
    )
    return file


def test_an_arm_that_was_down_is_asked_again_and_no_other(file):
    with collector(down=lambda: answer(7.0), verifier=lambda: answer(1.0)) as (ours, asked):
        found = ours.collect(file, rollouts(), 2, 0)
    assert sorted(asked) == sorted(["down", VERIFIER] * 2)
    for rollout in found:
        assert rollout.score_Kn[:2].tolist() == [[1.0, 2.0], [7.0, 7.0]]
        assert np.isnan(rollout.score_Kn[2]).all()
        assert rollout.verdict_n.tolist() == [1.0, 1.0]
        assert rollout.failures == {"broken": "no such column"}
        assert not rollout.transient
    with collector() as (ours, asked):
        again = ours.collect(file, rollouts(), 2, 0)
    assert asked == []
    assert [r.score_Kn.tolist()[:2] for r in again] == [r.score_Kn.tolist()[:2] for r in found]


def test_an_arm_that_is_still_down_is_asked_the_next_time_too(file):
    busy = lambda: RequestError("busy", 503)  # noqa: E731
    with collector(0.01, down=busy, verifier=lambda: answer(1.0)) as (ours, _):
        found = ours.collect(file, rollouts(), 2, 0)
    assert [rollout.transient for rollout in found] == [{"down"}] * 2
    assert found[0].failures["down"] == "busy"
    assert read_rollouts(file, NAMES)[0].transient == {"down"}


def test_what_an_arms_limits_cut_is_kept_with_the_samples_and_summed(file):
    scores = (Score(score=1.0, num_cut=3), Score(score=2.0))
    cut = ModelAnswer(model="m", items=(scores,))
    with collector(down=lambda: cut, verifier=lambda: answer(1.0)) as (ours, _):
        found = ours.collect(file, rollouts(), 2, 0)
    assert [rollout.num_cut for rollout in found] == [{"down": (3, 0)}] * 2
    sums = {"down": {"texts": 2, "tokens": 6}}
    assert summed_truncation(rollout.truncation for rollout in found) == sums
    run = StrategyRun("uniform", NAMES, file.parent)
    for round in range(2):
        run.add_round(round, found, None)
    assert run.truncated == {"down": {"texts": 4, "tokens": 12}}


def test_samples_of_an_older_version_have_no_counts_of_what_was_cut(file):
    table = pq.read_table(file)
    pq.write_table(table.drop_columns([f"cut:{name}" for name in NAMES]), file)
    assert [rollout.num_cut for rollout in read_rollouts(file, NAMES)] == [{}, {}]


def test_scores_that_later_steps_have_used_stay_as_they_are(file):
    with collector(down=lambda: answer(7.0), verifier=lambda: answer(1.0)) as (ours, asked):
        found = ours.collect(file, rollouts(), 2, 0, used=True)
    assert asked == []
    assert np.isnan(found[0].score_Kn[1]).all()


@pytest.mark.parametrize(
    ("response", "transient"),
    [
        (RequestError("full", 429), True),
        (RequestError("lost", 503), True),
        (RequestError("no such field", 400), False),
        (ModelAnswer(model="m", items=((Score(error="late", transient=True),) * 2,)), True),
        (ModelAnswer(model="m", items=((Score(error="too long"),) * 2,)), False),
        (ModelAnswer(model="m", items=((Score(score=1.0),) * 2,)), False),
    ],
)
def test_only_what_may_pass_is_worth_asking_again(response, transient, file):
    with collector(0.01, down=lambda: response, verifier=lambda: answer(1.0)) as (ours, _):
        found = ours.collect(file, rollouts(), 2, 0)
    assert ("down" in found[0].transient) is transient
    assert transient or math.isnan(found[0].score_Kn[1][0]) or found[0].score_Kn[1][0] == 1.0
