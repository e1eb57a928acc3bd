"""One round of policy training on Ray Train: ranked samples in, the next adapters out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from actors.dpo_task import STOPPED, PolicyRound, PolicyTask
from actors.dpo_training import train_policy
from panoply.data.schema import digest
from workflows.cluster.ray_cluster import check_or_write_config, run_train


def train_round(task: PolicyTask, num_workers: int, gpus: float = 0.0) -> PolicyRound:
    """Trains a round, or goes on with one that was begun; one that is done is only read.

    Args:
        task: the round.
        num_workers: most Ray Train workers; 0 trains inside this process.
        gpus: of each worker.

    Raises:
        ValueError: the folder holds a round of other prompts or another configuration.
        RuntimeError: a loss or gradient was not finite.
    """
    folder = Path(task.folder)
    own = {
        name: digest(json.dumps([asdict(ranked) for ranked in given]))
        for name, given in (("prompts", task.prompts), ("probe", task.probe))
    }
    trained = {"config": asdict(task.config), "seed": task.seed, "round": task.round}
    check_or_write_config(folder, "round.json", own | trained)
    (folder / STOPPED).unlink(missing_ok=True)
    run_train(train_policy, {"task": task}, num_workers, folder, "train", gpus=gpus)
    if (folder / STOPPED).exists():
        reason = json.loads((folder / STOPPED).read_text())["reason"]
        raise RuntimeError(
            f"round {task.round}, {reason}: training stopped before it changed a weight. The "
            f"prompts are in {str(folder)!r}, nonfinite-*.json; lower `lr`, or look at those"
        )
    return PolicyRound.read(folder)
