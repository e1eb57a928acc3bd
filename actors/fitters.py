"""Ray Train loops of ArmoRM: sums for the ridge, and heads trained by Bradley-Terry.

Both divide blocks or steps by rank, write results under fixed names and skip what is done, so a
restart or another number of workers gives the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any, cast

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits
from torch import Tensor

from panoply.armorm.blocks import BlockSums
from panoply.armorm.head_training import HeadTask, train_apart, train_head
from panoply.files import whole_file


def write_sums(config: Mapping[str, Any]) -> None:
    """Adds up the blocks that are left.

    Args:
        config: `sums`, a list of `BlockSums`, and `num_cpus` of a worker.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # A product of matrices has other last bits when several threads share it.
    with threadpool_limits(1):
        for sums in cast(list[BlockSums], config["sums"]):
            if world > 1:
                sums.write(rank, world, ray.train.collective.broadcast_from_rank_zero)
            else:
                write_by_threads(sums, config["num_cpus"])
    ray.train.report({})


def write_by_threads(sums: BlockSums, num: int) -> None:
    """Adds up the blocks that are left by threads of this process, each as a worker would."""
    barrier, value = Barrier(num), 0

    def work(rank: int) -> None:
        def meet(here: int) -> int:
            nonlocal value
            if rank == 0:
                value = here
            barrier.wait()
            agreed = value
            barrier.wait()  # nobody goes on to the next value before all have this one
            return agreed

        try:
            sums.write(rank, num, meet)
        except BaseException:
            barrier.abort()  # lets the other threads end too
            raise

    with ThreadPoolExecutor(num) as pool:
        errors = [future.exception() for future in [pool.submit(work, r) for r in range(num)]]
    if failed := [error for error in errors if error]:
        raise next((e for e in failed if not isinstance(e, BrokenBarrierError)), failed[0])


def fit_heads(config: Mapping[str, Any]) -> None:
    """Trains heads and saves each as `NAME.safetensors`.

    Workers train one head after the other, data-parallel; a pool trains one in each process.

    Args:
        config: `folder` of the arrays and of the results, `tasks`, a list of `HeadTask`, and
            `pool`, whose `map` runs a function in other processes, or None.
    """
    context, folder = ray.train.get_context(), Path(config["folder"])
    rank, world = context.get_world_rank(), context.get_world_size()
    tasks = [
        task for task in cast(list[HeadTask], config["tasks"]) if not _file(folder, task).exists()
    ]
    if config["pool"]:
        arrays = config["pool"].map(partial(train_apart, folder), tasks)
        for task, state in zip(tasks, arrays, strict=True):
            _save(folder, task, {name: torch.from_numpy(x) for name, x in state.items()})
    else:
        torch.set_num_threads(1)
        for task in tasks:
            state = train_head(
                task.open(folder),
                task.train,
                task.select,
                task.config,
                task.seed,
                rank=rank,
                world=world,
                wrap=ray.train.torch.prepare_model if world > 1 else None,
            )
            if rank == 0:
                _save(folder, task, state)
    ray.train.report({})


def _file(folder: Path, task: HeadTask) -> Path:
    return folder / f"{task.name}.safetensors"


def _save(folder: Path, task: HeadTask, state: dict[str, Tensor]) -> None:
    with whole_file(_file(folder, task)) as unfinished:
        save_file(state, unfinished)
