"""Samplers and the learner of a policy on Ray: one that is killed changes nothing."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from actors.dpo_trainer import DPOTrainer
from actors.policy_round import PolicyRound
from actors.sampler import Sampler
from panoply.config import Rendering
from panoply.config.policy import SamplingConfig
from panoply.config.preference import Lora
from panoply.data.tasks import Task
from panoply.hub.policy.lora import FILE
from panoply.preference.distributed import Group
from tests.builders.policy_rounds import configured, policy_task, ranked_prompts
from workflows.cluster.policy import train_round
from workflows.cluster.samplers import draw_samples, sampler_pool, split_calls

pytestmark = pytest.mark.ray

LONG = SamplingConfig(max_tokens=200, batch_size=8, temperature=1.0)
QUESTIONS = [
    Task(f"q{i}", [{"role": "user", "content": "say " + "a" * (i % 5) + str(i)}]) for i in range(12)
]


def kill_one(title):
    """Kills a process of this test's own cluster by what it calls itself; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        if title in " ".join(process.cmdline()):
            process.kill()
            return True
    return False


def test_calls_do_not_depend_on_the_order_of_the_prompts():
    found = split_calls(QUESTIONS, 3, 8)
    assert split_calls(list(reversed(QUESTIONS)), 3, 8) == found
    assert [len(call) for call in found] == [2] * 6
    assert sorted(q.prompt_id for call in found for q in call) == sorted(
        q.prompt_id for q in QUESTIONS
    )
    assert [len(call) for call in split_calls(QUESTIONS, 30, 8)] == [1] * 12


def test_a_sampler_that_is_killed_changes_no_sample(cluster, tiny_policy_folder):
    model, asked = str(tiny_policy_folder), split_calls(QUESTIONS, 4, LONG.batch_size)
    alone = Sampler(model, LONG, Rendering(), "float32", threads=1)
    wanted = {found.prompt_id: found for call in asked for found in alone.sample(call, 4, 3, 1)}
    got = {}
    with sampler_pool(2, model, LONG, Rendering(), dtype="float32") as pool:
        for found in draw_samples(pool, asked, 4, 3, 1):
            if not got:
                assert kill_one("ray::Sampler")
            assert found.prompt_id not in got
            got[found.prompt_id] = found
    assert got == wanted


def test_a_prompt_that_cannot_be_answered_is_told(cluster, tiny_policy_folder):
    config = replace(LONG, max_tokens=3000)
    with (
        sampler_pool(1, str(tiny_policy_folder), config, Rendering(), dtype="float32") as pool,
        pytest.raises(ValueError, match=r"lower `rendering.max_prompt_tokens`"),
    ):
        list(draw_samples(pool, split_calls(QUESTIONS, 1, 8), 1, 0, 0))


def test_a_learner_whose_worker_is_killed_ends_as_an_undisturbed_one(
    cluster, tiny_policy_folder, tmp_path
):
    task = policy_task(tiny_policy_folder, tmp_path / "alone", prompts=ranked_prompts(24))
    task = configured(task, tmp_path / "alone", num_epochs=15, lr=2e-4, checkpoint_every=5)
    DPOTrainer(task, Group()).run()
    alone = PolicyRound.read(tmp_path / "alone")
    folder, killed = tmp_path / "killed", []

    def kill():
        while not list(folder.glob("step-*")):
            time.sleep(0.05)
        killed.append(kill_one("RayTrainWorker"))

    threading.Thread(target=kill, daemon=True).start()
    found = train_round(replace(task, folder=str(folder)), 2)
    assert killed == [True]
    losses = ([step["loss"] for step in one.history] for one in (found, alone))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    ours, theirs = (load_file(Path(one.adapter) / FILE) for one in (found, alone))
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-3 * value.norm() + 1e-6
    after = (np.array(one.pairs["loss_after"]) for one in (found, alone))
    np.testing.assert_allclose(*after, rtol=1e-3)
    # A round that is done is only read.
    assert train_round(replace(task, folder=str(folder)), 0).pairs.equals(found.pairs)
    with pytest.raises(ValueError, match="holds a run with other prompts"):
        train_round(replace(task, folder=str(folder), prompts=ranked_prompts(24, seed=1)), 0)
    backbone = replace(task.backbone, trained=Lora(rank=8))
    with pytest.raises(ValueError, match=r"other settings \(trained.rank: .* -> 8\)"):
        train_round(replace(task, folder=str(folder), backbone=backbone), 0)


def test_a_round_that_diverges_says_so(tiny_policy_folder, tmp_path):
    bad = configured(policy_task(tiny_policy_folder, tmp_path), tmp_path, lr=1e30, num_epochs=3)
    with pytest.raises(RuntimeError, match=r"round 0, step .*nonfinite-\*.json; lower `lr`"):
        train_round(bad, 0)
