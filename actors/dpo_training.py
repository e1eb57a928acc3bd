"""The Ray Train loop of a round of policy training: resume, step, save, stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch

from actors import checkpoints
from actors.dpo_task import ADAPTER, DONE, PAIRS, PROBE, PROGRESS, STOPPED, PolicyTask
from actors.dpo_trainer import OPTIMIZER, DPOTrainer, tokens_of
from actors.reward_trainer import NonFinite
from actors.reward_training import TOLD_EVERY_SECONDS, worker_group
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.lora import save_adapter
from panoply.preference.distributed import Group
from panoply.preference.policy_outcome import kl_per_token, margin_per_token, pair_losses


def train_policy(config: Mapping[str, PolicyTask]) -> None:
    """Trains one round; if it is done already, nothing happens."""
    silence_libraries()
    task = config["task"]
    if task.threads:
        torch.set_num_threads(task.threads)
    if not (Path(task.folder) / DONE).exists():
        run_policy_task(task, worker_group())
    ray.train.report({})


def run_policy_task(task: PolicyTask, group: Group) -> None:
    """Takes a round to its end, or to a number that is not finite, and leaves a `PolicyRound`."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    learner = DPOTrainer(task, group)
    history: list[dict[str, Any]] = []
    state = checkpoints.newest(folder)
    if state is not None:
        learner.weights.load(state)
        history = state["history"]
    group.wait()  # before the first of them writes the next one
    try:
        take_steps(learner, history, folder)
    except NonFinite as error:
        if group.rank == 0:
            checkpoints.write_json(folder / STOPPED, {"reason": str(error)})
        return
    finish(learner, history, folder)


def take_steps(learner: DPOTrainer, history: list[dict[str, Any]], folder: Path) -> None:
    """Takes the steps that are left, and saves on the way."""
    told, first = 0.0, learner.group.rank == 0
    while len(history) < learner.num_steps:
        history.append(learner.step(len(history)))
        done = len(history)
        if done % learner.config.checkpoint_every == 0 and done < learner.num_steps:
            state = learner.weights.state() | {"history": history}
            if first:
                checkpoints.save(folder, done, state)
            learner.group.wait()
        if first and time.monotonic() - told >= TOLD_EVERY_SECONDS:
            told = time.monotonic()
            counts = {"step": done, "num_steps": learner.num_steps}
            checkpoints.write_json(folder / PROGRESS, counts)


def finish(learner: DPOTrainer, history: list[dict[str, Any]], folder: Path) -> None:
    """Writes the adapters, and what became of the pairs and of the probe."""
    after_P2, probe_Q2 = learner.spoken(learner.comparisons), learner.spoken(learner.probe)
    state = learner.weights.state()
    if learner.group.rank == 0:
        adapter = folder / ADAPTER
        save_adapter(learner.trainable, state["trained"], learner.task.backbone.model, adapter)
        torch.save(state["optimizer"], adapter / OPTIMIZER)
        pq.write_table(outcome_table(learner, after_P2), folder / PAIRS)
        pq.write_table(probe_table(learner, probe_Q2), folder / PROBE)
        checkpoints.write_json(folder / DONE, {"history": history})
        checkpoints.clear(folder)
    learner.group.wait()


def outcome_table(learner: DPOTrainer, after_P2: Any) -> pa.Table:
    """Returns the table of `PolicyRound.pairs`."""
    prompts, config = learner.task.prompts, learner.config
    tokens_P2, reference_P2 = tokens_of(learner.comparisons), learner.reference_P2
    columns: dict[str, Any] = {
        "prompt_id": [ranked.prompt_id for ranked in prompts for _ in ranked.pairs],
        "chosen": [i for ranked in prompts for i, _ in ranked.pairs],
        "rejected": [j for ranked in prompts for _, j in ranked.pairs],
        "weight": learner.weight_P,
    }
    for spoken_P2, suffix in ((learner.before_P2, ""), (after_P2, "_after")):
        found = pair_losses(spoken_P2, tokens_P2, reference_P2, config.beta, config.alpha)
        columns |= {f"{name}{suffix}": values for name, values in found.items()}
        columns |= {
            f"chosen_log_prob{suffix}": spoken_P2[:, 0],
            f"rejected_log_prob{suffix}": spoken_P2[:, 1],
        }
    columns["reference"] = reference_P2[:, 0] - reference_P2[:, 1]
    columns["kl"] = kl_per_token(learner.before_P2, learner.base_P2, tokens_P2)
    return pa.table(columns)


def probe_table(learner: DPOTrainer, after_Q2: Any) -> pa.Table:
    """Returns the table of `PolicyRound.probe`."""
    tokens_Q2 = tokens_of(learner.probe)
    rows = [ranked for ranked in learner.task.probe for _ in ranked.pairs]
    columns: dict[str, Any] = {
        "prompt_id": pa.array([ranked.prompt_id for ranked in rows], pa.string()),
        "source": pa.array([ranked.source for ranked in rows], pa.string()),
        "margin": margin_per_token(learner.probe_Q2, tokens_Q2),
        "margin_after": margin_per_token(after_Q2, tokens_Q2),
    }
    return pa.table(columns)
