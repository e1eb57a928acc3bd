"""What workers of the tests run, each in a process of its own."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from actors.dpo_training import run_policy_task
from actors.reward_trainer import RewardTrainer
from actors.reward_training import Run, run_task
from panoply.preference.distributed import Group
from tests.builders.preference_runs import steps_of


def join(rank, world, folder):
    """Joins the workers of a run, and returns them."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    return Group(rank, world)


def train_policies(rank, world, folder, tasks):
    """Runs rounds of policy training to their end."""
    group = join(rank, world, folder)
    for task in tasks:
        run_policy_task(task, group)
    dist.destroy_process_group()


def work(rank, world, folder, tasks):
    """Runs every task to its end, and one of them in two parts."""
    group = join(rank, world, folder)
    for name, task in tasks.items():
        if name.startswith("half"):
            run = Run.begin(RewardTrainer(task, group), Path(task.folder))
            for _ in range(3):
                run.history.append(run.learner.step(run.step))
                run.step += 1
            run.save()
        else:
            run_task(task, group)
    # A last step of one pair leaves the second worker with nothing.
    steps_of(tasks["short"], group=group)
    dist.destroy_process_group()
