"""TRL's trainers take their rewards from the server, two steps each."""

import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from panoply.wire.client import Client
from tests.clients.dialogs import DISTINCT

pytestmark = pytest.mark.ray

PROMPTS = Dataset.from_list([{"prompt": prompt} for prompt, _ in DISTINCT[-8:]])


def recorded(reward, seen):
    """The reward function, whose arguments and answers are kept."""

    def call(**columns):
        rewards = reward(**columns)
        seen.append((columns["prompts"], columns["completions"], rewards))
        return rewards

    call.__name__ = reward.__name__
    return call


def test_grpo_takes_two_steps_on_the_scores_of_the_server(
    served, tiny_policy_folder, tmp_path, scalar_model
):
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-3,
        beta=0.0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    seen = []
    trainer = GRPOTrainer(
        model=str(tiny_policy_folder),
        reward_funcs=[recorded(Client(served.url).trl_reward_func("scalar"), seen)],
        args=settings,
        train_dataset=PROMPTS,
        processing_class=AutoTokenizer.from_pretrained(tiny_policy_folder),
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.global_step == 2
    for prompts, completions, rewards in seen:
        for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
            expected = scalar_model.score(prompt, [completion[0]["content"]])[0]
            assert reward == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    logged = [row["rewards/scalar/mean"] for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    changed = [
        not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)
    ]
    assert any(changed)


def test_asynchronous_grpo_takes_two_steps_with_its_rewards_asked_in_another_process(
    served, tiny_policy_folder, tmp_path, scalar_model
):
    # TRL never comes back where the process that asks for rewards dies, hence the time limit.
    words = [served.url, str(tiny_policy_folder), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.async_grpo", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["steps"] == 2
    assert len(report["samples"]) >= 8
    for prompt, reply, reward in report["samples"]:
        expected = float(scalar_model.score(prompt, [reply])[0])
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-4)
    means = [row["rewards/scalar"] for row in report["log"] if "rewards/scalar" in row]
    assert len(means) == 2
