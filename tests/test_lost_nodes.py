"""A run on three nodes outlives the death of nodes and of its own driver, and ends the same."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.ray

FAST_DEATH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is noticed within seconds."""
FLAGS = (
    *("--planted.num-prompts", "300", "--planted.num-responses", "3"),
    *("--backbone.dtype", "float32", "--backbone.depths", "0.34", "0.67"),
    *("--backbone.token-budget", "512"),  # else each run calibrates its own
    *("--backbone.sample-prompts", "60", "--objectives.block-rows", "64"),
    *("--gate.hidden-size", "16", "--gate.num-steps", "300", "--gate.eval-every", "20"),
    *("--num-workers", "2", "--no-leave-one-out"),
)


class Nodes:
    """A head without room for workers and two nodes, each with a home of its own."""

    def __init__(self, folder):
        from ray.cluster_utils import Cluster

        self.folder, self.count = folder, 0
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": FAST_DEATH,
            },
        )
        self.workers = [self.add(), self.add()]

    def add(self):
        """Brings in a node with one CPU."""
        self.count += 1
        home = self.folder / f"home-{self.count}"
        home.mkdir()
        return self.cluster.add_node(num_cpus=1, env_vars={"HOME": str(home)})

    def replace(self):
        """Kills the first node without warning and brings another one in."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)
        self.workers.append(self.add())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    found = Nodes(tmp_path_factory.mktemp("nodes"))
    yield found
    found.cluster.shutdown()


class Run:
    """The command on the nodes, or in local processes, as a process of its own."""

    def __init__(self, nodes, model, out, store, *more):
        own = {"PANOPLY_STORE": str(store), "MLFLOW_TRACKING_URI": f"sqlite:///{out}.db"}
        if nodes:
            own["RAY_ADDRESS"] = nodes.cluster.address
        self.command = [sys.executable, "-m", "jobs.armorm", "embedded", "--out", str(out)]
        self.command += ["--backbone.model", str(model), *FLAGS, *more]
        self.log = out.with_suffix(".log").open("ab")
        self.env, self.out, self.store = os.environ | own, out, store
        self.start()

    def start(self):
        """Gives the command, again after a kill."""
        self.process = subprocess.Popen(
            self.command, env=self.env, stdout=self.log, stderr=subprocess.STDOUT
        )

    def told(self):
        """Returns what the command printed."""
        return self.out.with_suffix(".log").read_text()

    def until(self, holds, seconds=400):
        """Waits for a sign that a stage is under way."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < end, self.told()
            time.sleep(0.02)

    def model(self, seconds=600):
        """Waits for the end and returns the weights."""
        assert self.process.wait(seconds) == 0, self.told()
        return load_file(self.out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tiny_model_folder, tmp_path_factory):
    """Weights of a run in local processes, which need less time, and give what nodes do."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return Run(None, tiny_model_folder, folder / "run", folder / "store").model()


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.allclose(found[name], expected[name], rtol=1e-6, atol=1e-9), name


def test_a_node_that_dies_in_each_stage_changes_no_weight(
    nodes, undisturbed, tiny_model_folder, tmp_path
):
    run = Run(nodes, tiny_model_folder, tmp_path / "run", tmp_path / "store")
    run.until(lambda: list(run.store.rglob("texts-*.parquet")))
    nodes.replace()
    run.until(lambda: list((run.out / "sums").glob("*.npz")))
    nodes.replace()
    run.until(lambda: (run.out / "pairs" / "gate.safetensors").exists())
    nodes.replace()
    same(run.model(), undisturbed)


def test_a_run_that_is_killed_goes_on_with_the_same_command_to_the_same_numbers(
    nodes, undisturbed, tiny_model_folder, tmp_path
):
    run = Run(nodes, tiny_model_folder, tmp_path / "run", tmp_path / "store")
    # The second kill is in Ray Train, whose CPUs the same command frees (`free_reservation`).
    for reached in ("texts-*.parquet", "pairs/gate.safetensors"):
        run.until(lambda reached=reached: list(tmp_path.rglob(reached)))
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        run.start()
    same(run.model(), undisturbed)
    assert not training_processes()  # of the killed runs either


def training_processes():
    """Returns the titles of the processes of this test's cluster that Ray Train started."""
    titles: list[str] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while we look
            titles.append(" ".join(process.cmdline()))
    names = ("TrainController", "RayTrainWorker", "SynchronizationActor", "PlacementGroupCleaner")
    return [title for title in titles if any(name in title for name in names)]


def test_a_run_without_room_for_a_worker_says_what_is_missing_and_ends(
    nodes, tiny_model_folder, tmp_path
):
    more = ("--backbone.gpus", "1", "--wait-minutes", "0.05")
    run = Run(nodes, tiny_model_folder, tmp_path / "run", tmp_path / "store", *more)
    assert run.process.wait(60) == 2
    assert "missing 2 x {'CPU': 1.0, 'GPU': 1.0}" in " ".join(run.told().split())
