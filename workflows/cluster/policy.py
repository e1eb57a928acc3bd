"""A round of policy training on Ray Train: from ranked samples to the next adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from actors.dpo_trainer import train_policy
from actors.policy_round import PolicyRound, PolicyTask, RankedPrompt, remove_optimizer
from actors.training_loop import STOPPED
from panoply.data.schema import digest
from panoply.files import read_json
from panoply.report.progress import RunError
from workflows.cluster.run_folder import check_or_write, check_or_write_settings
from workflows.cluster.train import run_train

ROUND_FILE = "round.json"
"""File of a round that says what is trained on; once it is there, its scores are in use."""


def train_round(task: PolicyTask, num_workers: int, gpus: float = 0.0) -> PolicyRound:
    """Trains a round, or resumes one that was begun; one that is done is only read.

    AdamW's state after the round before is removed then: no round starts from it any more.

    Args:
        task: the round.
        num_workers: most Ray Train workers; 0 trains inside this process.
        gpus: GPUs of each worker.

    Raises:
        ValueError: the folder holds a round of other prompts or another configuration.
        RunError: a loss or gradient was not finite.
    """
    folder = Path(task.folder)
    record = {
        "prompts": _digest(task.prompts),
        "gold_pairs": _digest(task.gold_pairs),
        "seed": task.seed,
        "round": task.round,
    }
    check_or_write(folder / ROUND_FILE, record)
    check_or_write_settings(folder / "backbone.json", task.backbone)
    check_or_write_settings(folder / "update.json", task.config)
    (folder / STOPPED).unlink(missing_ok=True)
    run_train(train_policy, {"task": task}, num_workers, folder, "train", gpus=gpus)
    if (folder / STOPPED).exists():
        reason = read_json(folder / STOPPED)["reason"]
        raise RunError(
            f"round {task.round}, {reason}: training stopped before it changed a weight. The "
            f"prompts are in {str(folder)!r}, nonfinite-*.json; lower `lr`, or look at those"
        )
    done = PolicyRound.read(folder)
    if task.start:
        remove_optimizer(Path(task.start))
    return done


def _digest(prompts: Sequence[RankedPrompt]) -> str:
    return digest(json.dumps([asdict(ranked) for ranked in prompts]))
