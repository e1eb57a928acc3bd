"""What workers of the tests run, each in a process of its own."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from actors.dpo_trainer import DPOTrainer
from actors.reward_trainer import RewardTrainer
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
        DPOTrainer(task, group).run()
    dist.destroy_process_group()


def work(rank, world, folder, tasks):
    """Runs every task to its end, and one of them in two parts."""
    group = join(rank, world, folder)
    for name, task in tasks.items():
        if name.startswith("half"):
            trainer = RewardTrainer(task, group)
            for _ in range(3):
                trainer.take_step()
            trainer.save()
        else:
            RewardTrainer(task, group).run()
    # A last step of one pair leaves the second worker with nothing.
    steps_of(tasks["short"], group=group)
    dist.destroy_process_group()
