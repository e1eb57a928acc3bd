"""Training the gate, and the network that it is compared with, by the Bradley-Terry loss.

    L = mean over pairs of -log sigma( R(chosen) - R(rejected) )

Legend: `P` pairs, `O` objectives, `F` response features, `D` gate features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from panoply.armorm.mixtures import fit_simplex
from panoply.config.armorm import GateConfig
from panoply.data.tables import PairTable
from panoply.model.gate import Dropout, Gate, ScalarHead, make_gate
from panoply.preference.losses import bradley_terry
from panoply.types import Array, Floats, Ints

MLP = GateConfig(hidden_size=256, num_hidden=1, dropout=0.3, num_steps=600, eval_every=25)
"""The network on response features that the gate is compared with; stopped on *select* like it."""
MAX_STANDARDIZED = 8192
"""Training rows whose mean and deviation standardize a head's features, about."""
CHUNK = 8192
"""Rows that a trained head is applied to at once."""
Batch: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class GateExamples:
    """Pairs for a gate: R(chosen) - R(rejected) = g(x) . d."""

    gate_PD: Floats
    difference_PO: Floats
    """d: objective values of the chosen minus those of the rejected response."""

    def batch(self, rows: Ints) -> Batch:
        """Returns the prompts' features and the differences of some pairs, in float64."""
        return _tensor(self.gate_PD[rows]), _tensor(self.difference_PO[rows])

    def make_head(self, config: GateConfig, train: Ints) -> Gate:
        """Returns a gate that starts at the best fixed weights of the training pairs.

        Where prompts tell nothing, it stays there.
        """
        gate = make_gate(self.gate_PD.shape[1], self.difference_PO.shape[1], config).double()
        fixed = fit_simplex(self.difference_PO[train])
        # Where no objective points the right way the fit has scale 0, from which nothing grows.
        gate.start_from(torch.from_numpy(fixed.weights), fixed.scale or 1.0)
        return gate

    def margin(self, gate: nn.Module, batch: Batch) -> Tensor:
        """Returns R(chosen) - R(rejected) `[P]`."""
        features_PD, difference_PO = batch
        return (gate(features_PD) * difference_PO).sum(-1)


@dataclass(frozen=True, slots=True)
class ResponseExamples:
    """Pairs for a network that scores a response from its features alone."""

    chosen_PF: Floats
    rejected_PF: Floats

    def batch(self, rows: Ints) -> Batch:
        """Returns the features of both responses of some pairs, in float64."""
        return _tensor(self.chosen_PF[rows]), _tensor(self.rejected_PF[rows])

    def make_head(self, config: GateConfig, train: Ints) -> ScalarHead:
        """Returns an untrained network."""
        return make_mlp(self.chosen_PF.shape[1], config).double()

    def margin(self, head: nn.Module, batch: Batch) -> Tensor:
        """Returns R(chosen) - R(rejected) `[P]`.

        One forward over both responses: DDP synchronizes a module once a step.
        """
        chosen, rejected = head(torch.cat(batch)).chunk(2)
        return chosen - rejected


Examples: TypeAlias = GateExamples | ResponseExamples


@dataclass(frozen=True, slots=True)
class HeadTask:
    """One head to train on arrays in files, by whichever worker."""

    name: str
    examples: type[GateExamples] | type[ResponseExamples]
    arrays: tuple[str, str]
    """Files `NAME.npy` of the examples' two arrays."""
    train: Ints
    """Rows of the arrays to train on."""
    select: Ints
    """Rows that stop the training."""
    config: GateConfig
    seed: int

    def open(self, folder: Path) -> Examples:
        """Memory-maps the arrays."""
        first, second = self.arrays
        return self.examples(
            np.load(folder / f"{first}.npy", mmap_mode="r"),
            np.load(folder / f"{second}.npy", mmap_mode="r"),
        )


def head_tasks(pairs: PairTable, config: GateConfig, seed: int) -> dict[str, HeadTask]:
    """Returns the gate, the gate on objectives that still hold length, and the MLP."""
    rows = pairs.split.of("train"), pairs.split.of("select")
    gate, biased, features = ("gate", "difference"), ("gate", "biased"), ("chosen", "rejected")
    tasks = (
        HeadTask("gate", GateExamples, gate, *rows, config, seed),
        HeadTask("gate-biased", GateExamples, biased, *rows, config, seed),
        HeadTask("mlp", ResponseExamples, features, *rows, MLP, seed),
    )
    return {task.name: task for task in tasks}


def left_out_tasks(pairs: PairTable, config: GateConfig, seed: int) -> dict[str, HeadTask]:
    """Returns a gate for each pair source, trained without it; none where there is one source."""
    sources = sorted(set(pairs.source_P))
    train, select = pairs.split.of("train"), pairs.split.of("select")
    tasks: dict[str, HeadTask] = {}
    for number, source in enumerate(sources if len(sources) > 1 else ()):
        other_P = pairs.source_P != source
        tasks[source] = HeadTask(
            f"gate-without-{number}",
            GateExamples,
            ("gate", "difference"),
            train[other_P[train]],
            select[other_P[select]],
            config,
            seed,
        )
    return tasks


def train_head(
    examples: Examples,
    train: Ints,
    select: Ints,
    config: GateConfig,
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> dict[str, Tensor]:
    """Trains a head and returns its float32 state with the least log loss on *select*.

    A step is a fixed list of pairs from (seed, step), and so are its dropout masks; every worker
    takes its slice, and the loss is divided by the pairs of all workers. In double precision what
    is left of the number of workers, the order of a sum, stays below what float32 can hold.

    Args:
        examples: the pairs.
        train: rows to train on.
        select: rows that stop the training.
        config: the head and its schedule.
        seed: of the initialization and of the steps.
        rank: this worker, 0 to `world - 1`.
        world: workers that train the head together.
        wrap: makes a module whose gradients are averaged over the workers, such as DDP; None for
            one worker.
    """
    torch.manual_seed(seed)
    head = examples.make_head(config, train)
    rows_here = slice(rank, None, world)
    for part in head.modules():
        if isinstance(part, Dropout):
            part.rows, part.batch_size = rows_here, config.batch_size
    sampled = train[:: max(1, len(train) // MAX_STANDARDIZED)]
    head.standardize(examples.batch(sampled)[0])
    model = wrap(head) if wrap else head
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    select_batch = examples.batch(select)
    best, best_state, evaluations_since = float("inf"), _state(head), 0
    for step in range(config.num_steps):
        if step % config.eval_every == 0:
            loss = _select_loss(examples, head, select_batch)
            evaluations_since += 1
            if loss < best:
                best, best_state, evaluations_since = loss, _state(head), 0
            if evaluations_since > config.patience:
                break
        rng = np.random.default_rng((seed, step))
        drawn = train[rng.integers(len(train), size=config.batch_size)]
        torch.manual_seed(int(rng.integers(2**63)))
        losses_P = bradley_terry(examples.margin(model, examples.batch(drawn[rows_here])))
        # DDP averages gradients over workers: times W makes it the sum over all pairs.
        mean_loss = losses_P.sum() * world / config.batch_size
        optimizer.zero_grad()
        mean_loss.backward()
        optimizer.step()
        schedule.step()
    return best_state


def train_apart(folder: Path, task: HeadTask) -> dict[str, Floats]:
    """Trains a head by one thread; returns its float32 state, for another process to save."""
    torch.set_num_threads(1)
    state = train_head(task.open(folder), task.train, task.select, task.config, task.seed)
    return {name: value.numpy() for name, value in state.items()}


@torch.no_grad()
def _select_loss(examples: Examples, head: nn.Module, batch: Batch) -> float:
    head.eval()
    loss = float(bradley_terry(examples.margin(head, batch)).mean())
    head.train()
    return loss


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu() for name, value in module.state_dict().items()}


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def make_mlp(size: int, config: GateConfig = MLP) -> ScalarHead:
    """Returns an untrained network on features of this size."""
    return ScalarHead(size, hidden_size=config.hidden_size, dropout=config.dropout)


@torch.no_grad()
def apply_head(function: Callable[[Tensor], Tensor], features_PX: Floats) -> Array:
    """Returns what a trained head makes of features, in float64, `CHUNK` rows at a time."""
    parts = [
        function(torch.from_numpy(np.array(features_PX[start : start + CHUNK]))).double().numpy()
        for start in range(0, len(features_PX), CHUNK)
    ]
    return np.concatenate(parts)
