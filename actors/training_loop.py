"""Training loops on Ray Train: resume, step, checkpoint, report progress, stop, write results.

Workers share all steps, and what they compute is a sum over all of them, so their number changes
nothing and a restart gives what an undisturbed run gives.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from panoply.config import as_dict
from panoply.files import write_whole
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.preference.checkpoint import newest_checkpoint, remove_checkpoints, save_checkpoint
from panoply.preference.distributed import Group
from panoply.preference.step import PairTree, StepOutput
from panoply.preference.train_state import TrainState

DONE, STOPPED, PROGRESS = "done.json", "stopped.json", "progress.json"
KEPT_CHECKPOINTS = 2
"""Number of the newest checkpoints that stay."""
PROGRESS_SECONDS = 1.0
"""Shortest time between two reports of progress."""


class NonFinite(FloatingPointError):
    """A loss or gradient is not a finite number; the batch was saved."""


class Trainer(ABC):
    """One worker of a training run, from its newest checkpoint to its results."""

    state: TrainState
    num_steps: int
    checkpoint_every: int
    """Steps between checkpoints."""
    max_norm: float
    """Largest norm of the gradient."""

    def __init__(self, task: Any, group: Group) -> None:
        self.group, self.folder, self.settings = group, Path(task.folder), task.config
        self.folder.mkdir(parents=True, exist_ok=True)
        self.history: list[dict[str, Any]] = []
        """Log of each step so far."""
        self.reported = 0.0
        self.num_reported = 0

    @property
    def over(self) -> bool:
        """Returns whether no step is left."""
        return len(self.history) == self.num_steps

    @abstractmethod
    def step(self, number: int) -> dict[str, Any]:
        """Takes a step and returns what is logged of it.

        Raises:
            NonFinite: the loss or a gradient is not finite; no parameter has changed.
        """

    def after_step(self) -> None:  # noqa: B027 (a hook: most trainers have nothing to do)
        """Does what is due between steps."""

    @abstractmethod
    def write_results(self) -> dict[str, Any]:
        """Writes the results of the run; returns the content of its `done.json`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a checkpoint needs; every worker takes part."""
        return self.state.state_dict() | {"history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a checkpoint of any number of workers."""
        self.state.load_state_dict(state)
        self.history = state["history"]

    def run(self) -> None:
        """Takes the steps that are left and writes the results.

        A number that is not finite ends the run with its reason in `stopped.json`.
        """
        if state := newest_checkpoint(self.folder):
            self.load_state_dict(state)
        self.group.barrier()  # before the first worker writes the next checkpoint
        try:
            while not self.over:
                self.take_step()
        except NonFinite as error:
            if self.group.rank == 0:
                write_whole(self.folder / STOPPED, json.dumps({"reason": str(error)}))
            return

        done = self.write_results()
        if self.group.rank == 0:
            write_whole(self.folder / DONE, json.dumps(done))
            remove_checkpoints(self.folder)
        self.group.barrier()

    def take_step(self) -> None:
        """Takes the next step, and saves and reports where that is due."""
        began = time.perf_counter()
        logged = self.step(len(self.history))
        self.history.append(logged | {"seconds": time.perf_counter() - began})
        self.after_step()
        done = len(self.history)
        if done % self.checkpoint_every == 0 and done < self.num_steps:
            self.save()
        now = time.monotonic()
        if self.group.rank == 0 and now - self.reported >= PROGRESS_SECONDS:
            self.reported = now
            progress = {"step": done, "num_steps": self.num_steps}
            progress |= {"rows": self.history[self.num_reported :]}
            self.num_reported = done
            write_whole(self.folder / PROGRESS, json.dumps(progress))

    def save(self) -> None:
        """Writes a checkpoint; the one before it stays for a while."""
        state = self.state_dict()
        if self.group.rank == 0:
            save_checkpoint(state, self.folder, len(self.history))
            remove_checkpoints(self.folder, keep=KEPT_CHECKPOINTS)
        self.group.barrier()

    def update(
        self,
        number: int,
        out: StepOutput,
        trees: Sequence[PairTree],
        batch: Mapping[str, Any],
        rate: float,
    ) -> dict[str, Any]:
        """Updates the parameters by gradients that are set; returns what is logged of the step.

        Args:
            number: number of the step.
            out: loss of this worker's part.
            trees: this worker's part.
            batch: names of the examples of the step, saved where a number is not finite.
            rate: share of the peak learning rates.

        Raises:
            NonFinite: the loss or a gradient is not finite; no parameter has changed.
        """
        norm = self.state.clip(self.max_norm)
        num_tokens = sum(item.tree.num_tokens for item in trees)
        loss, tokens = self.group.all_reduce_sum(np.array([out.loss, num_tokens])).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            saved = {"step": number, **batch, "loss": out.loss, "margins": out.margin_PK.tolist()}
            path = self.folder / f"nonfinite-{number}-{self.group.rank}.json"
            write_whole(path, json.dumps(saved | {"config": as_dict(self.settings)}, indent=1))
            raise NonFinite(f"step {number}: loss {loss}, gradient norm {norm}")
        self.state.step(rate)
        return {"step": number, "loss": loss, "gradient_norm": norm, "tokens": tokens}


def train_each(tasks: Sequence[Any], trainer: Callable[[Any, Group], Trainer]) -> None:
    """Trains models one after the other inside a Ray Train worker; skips those that are done.

    Args:
        tasks: what the trainer takes, with `folder` and `threads` (0: torch's own number).
        trainer: class of the trainers.
    """
    silence_libraries()
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if size > 1 else torch.device("cpu")
    for task in tasks:
        if task.threads:
            torch.set_num_threads(task.threads)
        if not (Path(task.folder) / DONE).exists():
            trainer(task, Group(rank, size, device)).run()
    ray.train.report({})
