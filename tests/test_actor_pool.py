"""Actors of a cluster: what they make once, and what is left when one of them is killed.

That a run outlives the death of nodes is tested in `tests/test_lost_nodes.py`.
"""

import time
from io import StringIO

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console

from panoply.report.progress import RunLogger
from tests.builders.pool_calls import Counter, DiesOnce, dies, pid, refuses
from tests.builders.ray_head import eventually
from workflows.cluster import actor_pool
from workflows.cluster.actor_pool import ActorPool

pytestmark = pytest.mark.ray
ONE_CPU = {"CPU": 1.0}


def test_a_function_is_made_once_in_each_actor_and_again_for_other_arguments(cluster):
    with ActorPool(2, ONE_CPU, RunLogger()) as pool:
        list(pool.map(time.sleep, [1] * 8))  # until both have started
        for start, num_made in ((10, 1), (10, 1), (20, 2)):
            answers = list(pool.map_made(Counter, (start,), range(40)))
            assert sorted(total for *_, total in answers) == [start + item for item in range(40)]
            assert len({pid for pid, *_ in answers}) == 2
            assert {made for _, made, _ in answers} == {num_made}


def test_a_killed_actor_costs_the_call_that_it_had(cluster, tmp_path):
    console = Console(file=StringIO(), width=200)
    with ActorPool(2, ONE_CPU, RunLogger(console)) as pool:
        answers = list(pool.map_made(DiesOnce, (tmp_path,), range(20)))
    assert sorted(answers) == list(range(0, 40, 2))
    assert console.file.getvalue().count("a worker was lost") == 1


def test_a_call_that_kills_every_actor_ends_the_run(cluster, monkeypatch):
    monkeypatch.setattr(actor_pool, "MAX_FAILURES", 2)
    console = Console(file=StringIO(), width=200)
    with ActorPool(1, ONE_CPU, RunLogger(console)) as pool, pytest.raises(RayActorError):
        list(pool.map(dies, [0]))
    assert console.file.getvalue().count("a worker was lost") == 2


def test_what_a_function_raises_reaches_the_driver_and_the_pool_goes_on(cluster):
    with ActorPool(2, ONE_CPU, RunLogger()) as pool:
        with pytest.raises(ValueError, match="not 7"):
            list(pool.map(refuses, [7]))
        assert list(pool.map(abs, [-1])) == [1]


def test_items_may_be_references_and_more_actors_than_fit_delay_nobody(cluster):
    with ActorPool(64, ONE_CPU, RunLogger()) as pool:
        assert sorted(pool.map(abs, [ray.put(-1), 2, ray.put(-3)])) == [1, 2, 3]


def test_free_actors_leave_their_cpus_and_start_again_for_the_next_call(cluster):
    total = ray.cluster_resources()["CPU"]

    def num_free():
        return ray.available_resources().get("CPU", 0)

    eventually(lambda: num_free() == total, 30, "all CPUs are free")
    with ActorPool(2, ONE_CPU, RunLogger()) as pool:
        [before] = pool.map(pid, [0])
        pool.free()
        eventually(lambda: num_free() == total, 30, "all CPUs are free again")
        [after] = pool.map(pid, [0])
        assert after != before
    eventually(lambda: num_free() == total, 30, "all CPUs are free at the end")
