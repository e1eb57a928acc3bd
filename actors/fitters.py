"""Ray Train loops: sums for the ridge, and heads trained by Bradley-Terry.

Both take blocks or steps by rank, write results under fixed names and skip what exists, so a
restart or another number of workers gives the same files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from panoply.armorm.mixtures import fit_simplex
from panoply.armorm.ridge import Moments, merge, moments, save
from panoply.config.armorm import GateConfig
from panoply.data.features import FeatureStore, Found
from panoply.model.gate import Dropout, Gate, ScalarHead, make_gate
from panoply.preference.losses import bradley_terry

Pattern: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Rated rows of one fold and one missingness pattern: an immutable unit of the sums."""

    name: str
    """Hash of the features' key, the text ids and the labels."""
    fold: int
    """Fold of the training prompts; -1 for *select*."""
    pattern: Pattern
    places: Found
    labels_NP: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SumsTask:
    """What the workers of `accumulate` share."""

    store: FeatureStore
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    folder: str
    threads: int = 1


def accumulate(config: Mapping[str, Sequence[SumsTask]]) -> None:
    """Writes the sums of every block that has none yet; rank r takes blocks r, r + W, ..."""
    context = ray.train.get_context()
    for task in config["tasks"]:
        torch.set_num_threads(task.threads)
        for block in task.blocks[context.get_world_rank() :: context.get_world_size()]:
            target = Path(task.folder) / f"{block.name}.npz"
            if not target.exists():
                partial = target.with_suffix(f".{os.getpid()}.part.npz")
                save(partial, {block.pattern: block_moments(task.store, task.columns, block)})
                partial.rename(target)
    ray.train.report({})


def block_moments(store: FeatureStore, columns: Sequence[str], block: Block) -> Moments:
    """Returns the sums of one block, reading one shard at a time."""
    parts = (
        {block.pattern: moments(x, block.labels_NP[rows])}
        for rows, x in store.gather(block.places, columns)
    )
    return merge(parts)[block.pattern]


@dataclass(frozen=True, slots=True)
class HeadTask:
    """One head to train on stored arrays."""

    name: str
    kind: Literal["gate", "mlp"]
    train: NDArray[np.int64]
    """Rows of the pair arrays to train on."""
    select: NDArray[np.int64]
    """Rows that stop the training."""
    config: GateConfig
    seed: int
    values: str = "difference"
    """File of the objective values that a gate weighs."""


def fit_heads(config: Mapping[str, Any]) -> None:
    """Trains heads one after the other, data-parallel, and saves the best of each on *select*.

    `folder` holds `gate.npy` [P, D], `difference.npy` [P, O] (r' of chosen minus rejected) or
    another file of values and, for an MLP, `chosen.npy` and `rejected.npy` [P, F].
    """
    folder, tasks = Path(config["folder"]), cast(Sequence[HeadTask], config["tasks"])
    torch.set_num_threads(config["threads"])
    for task in tasks:
        target = folder / f"{task.name}.safetensors"
        if not target.exists():
            state = train_head(task, folder)
            if ray.train.get_context().get_world_rank() == 0:
                save_file(state, target.with_suffix(".part"))
                target.with_suffix(".part").rename(target)
    ray.train.report({})


class Pairs:
    """The pair arrays of a head, memory-mapped; margins of a batch of rows."""

    def __init__(self, task: HeadTask, folder: Path) -> None:
        self.kind = task.kind
        names = ("gate", task.values) if self.kind == "gate" else ("chosen", "rejected")
        self.a, self.b = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)

    def rows(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns the two arrays' rows as tensors."""
        a, b = (torch.from_numpy(x[index].astype(np.float64)) for x in (self.a, self.b))
        return a, b

    def module(self, config: GateConfig) -> Gate | ScalarHead:
        """Returns the untrained head for these arrays."""
        if self.kind == "mlp":
            return ScalarHead(
                self.a.shape[1], hidden_size=config.hidden_size, dropout=config.dropout
            )
        return make_gate(self.a.shape[1], self.b.shape[1], config)

    def margin(self, module: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        """Returns R(chosen) - R(rejected) of a batch.

        One forward over both responses of an MLP: DDP synchronizes a module once a step.
        """
        if self.kind == "gate":
            return (module(a) * b).sum(-1)
        chosen, rejected = module(torch.cat([a, b])).chunk(2)
        return chosen - rejected


def train_head(task: HeadTask, folder: Path) -> dict[str, Tensor]:
    """Returns the state with the least log loss on *select*.

    A step is a fixed list of pairs from (seed, step), and so are its dropout masks; every worker
    takes its slice, and the loss is divided by the pairs of all workers. In double precision what
    is left of the number of workers, the order of a sum, stays below what float32 can hold.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(task.seed)
    pairs, config = Pairs(task, folder), task.config
    module = pairs.module(config).double()
    held = slice(rank, None, world)
    for part in module.modules():
        if isinstance(part, Dropout):
            part.held, part.size = held, config.batch_size
    module.standardize(pairs.rows(task.train[:: max(1, len(task.train) // 8192)])[0])
    if isinstance(module, Gate):
        start_from_fixed(module, pairs.b[task.train])
    model = ray.train.torch.prepare_model(module) if world > 1 else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    watched = pairs.rows(task.select)
    best, best_state, waited = float("inf"), clone(module), 0
    for step in range(config.num_steps):
        if step % config.eval_every == 0:
            loss = select_loss(pairs, module, watched)
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, best_state = loss, clone(module)
            if waited > config.patience:
                break
        rng = np.random.default_rng((task.seed, step))
        drawn = rng.integers(len(task.train), size=config.batch_size)
        batch = pairs.rows(task.train[drawn[held]])
        torch.manual_seed(int(rng.integers(2**63)))
        losses_P = bradley_terry(pairs.margin(model, *batch))
        # DDP averages gradients over workers: times W makes it the sum over all pairs.
        loss_sum = losses_P.sum() * world / config.batch_size
        optimizer.zero_grad()
        loss_sum.backward()
        optimizer.step()
        schedule.step()
    return best_state


def start_from_fixed(gate: Gate, difference_PO: NDArray[np.float32]) -> None:
    """Starts a gate at the best fixed weights: where prompts tell nothing, it stays there."""
    fixed = fit_simplex(difference_PO)
    # Where no objective points the right way the fit has scale 0, from which nothing grows.
    gate.start_from(torch.from_numpy(fixed.weights), fixed.scale or 1.0)


@torch.no_grad()
def select_loss(pairs: Pairs, module: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """Returns the log loss on *select*, without dropout."""
    module.eval()
    loss = float(bradley_terry(pairs.margin(module, *rows)).mean())
    module.train()
    return loss


def clone(module: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of a module's state in float32."""
    return {name: value.detach().float().cpu() for name, value in module.state_dict().items()}


def load_head(path: Path, module: Gate | ScalarHead) -> Gate | ScalarHead:
    """Fills a module with a saved state, for inference."""
    module.load_state_dict(load_file(path))
    return module.eval().requires_grad_(False)
