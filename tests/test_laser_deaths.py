"""Processes of a run that are killed at their work: the numbers stay those of a calm run."""

import json
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import AutoTokenizer

from panoply.bandit.bandits import Thompson
from panoply.config.bandit import SelectorConfig
from panoply.config.laser import ArmsConfig, PromptsConfig
from panoply.config.policy import SamplingConfig
from panoply.config.serve import ScalingConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.laser.log import Log
from panoply.laser.rollout import read_rollouts
from panoply.report.progress import RunLogger
from tests.builders.laser_runs import SHORT, laser_config
from tests.builders.models import save_small
from workflows.laser import run_laser, split_prompts

ARMS = ("scalar", "short")
DEATHS = {
    # Title of the process, what has to be there, and what must not: it is on the way.
    "sampler": ("ray::Sampler.sample", "log/decisions-00000000.parquet", "000/samples.parquet"),
    "selector": (
        "ray::BanditActor",
        "log/decisions-00000001.parquet",
        "log/rewards-00000001.parquet",
    ),
    "learner": ("RayTrainWorker", "002/start_logps.npz", "002/done.json"),
    "replica": (":RewardModel", "log/decisions-00000003.parquet", "003/samples.parquet"),
}


@pytest.fixture(scope="module")
def calm(cluster, tiny_policy_folder, tmp_path_factory):
    """A run with a reward model as an arm that nothing disturbs: its configuration and metrics."""
    root = tmp_path_factory.mktemp("deaths")
    save_small(root / "scalar", AutoTokenizer.from_pretrained(tiny_policy_folder))
    config = laser_config(
        tiny_policy_folder,
        root / "calm",
        prompts=PromptsConfig(num_made=10, num_held_out=2),
        arms=ArmsConfig(
            models=(f"scalar={root}/scalar", f"short={SHORT}"),
            scaling=ScalingConfig(cpus=0.1),
            timeout=120.0,
        ),
        score_with_all_arms=True,
        evaluate_every=4,
        selector=SelectorConfig(bandit=Thompson(max_features=8)),
        sampling=SamplingConfig(max_tokens=48, batch_size=6),
        num_workers=1,
    )
    policy = replace(config.policy, prompts_per_step=1, num_epochs=3, checkpoint_every=1)
    config = replace(config, policy=policy)
    return config, run_laser(config, RunLogger())


@pytest.fixture(scope="module")
def disturbed(calm, tmp_path_factory):
    """The same run, in each round of which another process is killed; and which kills hit."""
    config, _ = calm
    config = replace(config, out=str(tmp_path_factory.mktemp("deaths") / "disturbed"))
    own, hits, over = Path(config.out) / "laser", {}, threading.Event()

    def kill_all():
        for name, (title, begun, done) in DEATHS.items():
            while not (own / begun).exists() and not over.wait(0.01):
                pass
            killed = None
            while killed is None and not (own / done).exists() and not over.wait(0.01):
                killed = kill(title)
            hits[name] = killed is not None and not (own / done).exists()

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        return config, run_laser(config, RunLogger()), hits
    finally:
        over.set()
        thread.join()


def kill(title):
    """Kills a process of this test's own cluster by what it calls itself; None: there is none."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while we look; a zombie is one of these
            if title in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return process.pid
    return None


@pytest.mark.parametrize("name", DEATHS)
def test_each_kill_hits_a_process_at_its_work(disturbed, name):
    assert disturbed[2][name]


def test_a_run_whose_processes_were_killed_ends_with_the_numbers_of_a_calm_one(calm, disturbed):
    (config, metrics), (other, found, _) = calm, disturbed
    # As text: an interval of few prompts is no number, which is equal to nothing.
    strategies = [json.dumps(run["strategies"], sort_keys=True) for run in (found, metrics)]
    assert strategies[0] == strategies[1]
    records = [Log(f"{one.out}/laser/log", ARMS).read() for one in (other, config)]
    ours, theirs = records
    assert ours.decisions.equals(theirs.decisions)
    ids = list(zip(*(ours.rewards[n].to_pylist() for n in ("round", "decision_id")), strict=True))
    assert len(ids) == len(set(ids)) == 16
    # A model's scores differ in their last bits with what shares its batch.
    without = [one.rewards.drop_columns("proxy") for one in records]
    assert without[0].equals(without[1])
    proxies = [np.array(one.rewards["proxy"].to_pylist(), np.float64) for one in records]
    np.testing.assert_allclose(*proxies, rtol=1e-4)
    assert not any(ours.rewards["failure"].to_pylist())


def test_a_model_that_is_served_as_an_arm_scores_as_it_does_when_loaded(calm, disturbed):
    for config in (calm[0], disturbed[0]):
        place = config.arms.models[0].removeprefix("scalar=")
        model = load_reward_model(place)
        prompts = {task.prompt_id: task.prompt for part in split_prompts(config) for task in part}
        for round in range(4):
            file = f"{config.out}/laser/{round:03d}/samples.parquet"
            for one in read_rollouts(file, ARMS):
                wanted = model.score(prompts[one.prompt_id], list(one.responses))
                assert one.score_Kn[0] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
