"""The selector as an actor: killed at any moment, it ends with the numbers of one that was not."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import ray

from panoply.laser.log import Log, LogDiffers, state_version
from tests.builders.selector_runs import ARMS, CONFIG, outcomes_of, prompts_of, run, same_log
from workflows.cluster.bandit_actor import NAMESPACE, bandit_actor


def pid_of(actor):
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def kill_after(seconds, pid):
    def kill():
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_selector_killed_between_and_within_its_calls_ends_as_an_undisturbed_one(
    cluster, tmp_path
):
    calm = run(tmp_path / "calm", range(6))
    rng, pids = np.random.default_rng(0), set()
    with bandit_actor(CONFIG, ARMS, 5, str(tmp_path / "killed")) as actor:
        for round in range(6):
            pids.add(pid := pid_of(actor))
            if round % 3 == 0:
                kill_after(0, pid).join()  # between the rounds
            killer = kill_after(0.02 * rng.random(), pid) if round % 3 == 1 else None
            decisions = ray.get(actor.begin_round.remote(round, prompts_of(round), {}))
            if killer:
                killer.join()
            killer = kill_after(0.02 * rng.random(), pid) if round % 3 == 2 else None
            ray.get(actor.end_round.remote(round, outcomes_of(round, decisions)))
            if killer:
                killer.join()
        status = ray.get(actor.status.remote())
        assert status == calm.status()
        assert state_version(ray.get(actor.learned.remote())) == state_version(calm.learned())
    assert len(pids) > 3
    assert same_log(tmp_path / "calm", tmp_path / "killed")
    ids = Log(str(tmp_path / "killed"), ARMS).read().rewards["decision_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 48


def test_whoever_starts_takes_over_and_nothing_is_left_behind(cluster, tmp_path):
    with bandit_actor(CONFIG, ARMS, 5, str(tmp_path)) as first:
        decisions = ray.get(first.begin_round.remote(0, prompts_of(0), {}))
        with bandit_actor(CONFIG, ARMS, 5, str(tmp_path)) as second:
            assert ray.get(second.begin_round.remote(0, prompts_of(0), {})) == decisions
            with pytest.raises(ray.exceptions.RayActorError):
                ray.get(first.status.remote())
            some = [second.decisions.remote(0, [p.prompt_id]) for p in prompts_of(0)]
            assert [one for (one,) in ray.get(some)] == decisions
    left = ray.util.list_named_actors(all_namespaces=True)
    assert not [one for one in left if one["namespace"] == NAMESPACE]


def test_a_log_of_another_run_is_refused_before_there_is_an_actor(tmp_path):
    run(tmp_path, range(1))
    with pytest.raises(LogDiffers), bandit_actor(CONFIG, ARMS[::-1], 5, str(tmp_path)):
        pass
