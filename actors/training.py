"""The Ray Train loop of preference training: resume, step, look, save, stop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray.train
import ray.train.torch
import torch

from actors.learner import Learner, NonFinite
from actors.task import TrainTask
from panoply.hub.backbone import quiet
from panoply.train.group import Group
from panoply.train.weighting import Weighting

TOLD_EVERY_SECONDS = 1.0
DONE, STOPPED, PROGRESS = "done.json", "stopped.json", "progress.json"


def train_models(config: Mapping[str, Sequence[TrainTask]]) -> None:
    """Trains models one after the other; those that are done are skipped."""
    quiet()
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if size > 1 else torch.device("cpu")
    for task in config["tasks"]:
        if task.threads:
            torch.set_num_threads(task.threads)
        if not (Path(task.folder) / DONE).exists():
            run_task(task, Group(rank, size, device))
    ray.train.report({})


def run_task(task: TrainTask, group: Group) -> None:
    """Trains one model and leaves its weights, margins and history in the task's folder."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    complete(Run.begin(Learner(task, group), folder))


def complete(run: Run) -> None:
    """Takes a run to its end, or to a number that is not finite."""
    try:
        run.go()
    except NonFinite as error:
        if run.learner.group.rank == 0:
            (run.folder / STOPPED).write_text(json.dumps({"reason": str(error)}))
        return
    run.finish()


class Run:
    """A run between its first step and its last: where it is, and the best it has seen."""

    def __init__(self, learner: Learner, folder: Path) -> None:
        self.learner, self.folder = learner, folder
        self.step, self.best, self.best_trained = 0, float("inf"), None
        self.waited = 0
        self.history: list[dict[str, Any]] = []
        self.told = 0.0

    @classmethod
    def begin(cls, learner: Learner, folder: Path) -> Self:
        """Begins anew, or goes on from the newest checkpoint."""
        run = cls(learner, folder)
        found = sorted(folder.glob("step-*.pt"))
        if found:
            state = torch.load(found[-1], weights_only=True, map_location="cpu")
            learner.weights.load(state)
            momentum = state["momentum"]
            learner.weighting = Weighting(
                None if momentum is None else momentum.numpy(), state["weights"].numpy()
            )
            learner.labels_P = state["labels"].numpy()
            for name in ("step", "best", "best_trained", "waited", "history"):
                setattr(run, name, state[name])
        learner.group.wait()  # before the first of them writes the next one
        return run

    @property
    def over(self) -> bool:
        """Whether all steps are taken, or patience has ended."""
        patience = self.learner.config.schedule.patience
        return self.step == self.learner.num_steps or bool(patience and self.waited >= patience)

    def go(self) -> None:
        """Takes the steps that are left."""
        schedule, learner = self.learner.config.schedule, self.learner
        per_epoch = learner.plan.steps_per_epoch
        look_every = schedule.eval_every or per_epoch
        while not self.over:
            self.history.append(learner.step(self.step))
            self.step += 1
            if learner.config.loss.smoothing and self.step % per_epoch == 0:
                learner.smooth_labels()
            if self.step % look_every == 0 or self.step == learner.num_steps:
                self.look()
            if self.step % schedule.checkpoint_every == 0 and self.step < learner.num_steps:
                self.save()
            self.tell()

    def look(self) -> None:
        """Looks at *select*, and keeps the weights where they are the best."""
        loss = self.learner.select_loss()
        self.history[-1]["select_loss"] = loss
        self.waited = 0 if loss < self.best else self.waited + 1
        if loss < self.best:
            self.best = loss
            if self.learner.config.schedule.keep_best:
                self.best_trained = self.learner.weights.trained()

    def save(self) -> None:
        """Writes a checkpoint; the one before it stays until this one is whole."""
        learner = self.learner
        state = learner.weights.state()
        if learner.group.rank == 0:
            momentum = learner.weighting.momentum_KD
            state |= {
                "momentum": None if momentum is None else torch.from_numpy(momentum),
                "weights": torch.from_numpy(learner.weighting.weights_K),
                "labels": torch.from_numpy(learner.labels_P),
            }
            names = ("step", "best", "best_trained", "waited", "history")
            state |= {name: getattr(self, name) for name in names}
            path = self.folder / f"step-{self.step:08d}.pt"
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            for old in sorted(self.folder.glob("step-*.pt"))[:-2]:
                old.unlink()
        learner.group.wait()

    def tell(self) -> None:
        """Writes how far the run is, for those who watch."""
        now = time.monotonic()
        if self.learner.group.rank == 0 and now - self.told >= TOLD_EVERY_SECONDS:
            self.told = now
            told = {"step": self.step, "num_steps": self.learner.num_steps}
            partial = self.folder / f"{PROGRESS}.part"
            partial.write_text(json.dumps(told))
            partial.rename(self.folder / PROGRESS)

    def finish(self) -> None:
        """Scores what is to be scored and writes the results."""
        learner = self.learner
        if self.best_trained is not None:
            learner.weights.restore(self.best_trained)
        mine = learner.group.mine(learner.task.pairs.scored)
        margin_PK = learner.all_margins(mine, as_saved=True)
        centers, scales = learner.moments()
        trained = learner.weights.trained()
        if learner.group.rank == 0:
            np.save(self.folder / "margins.npy", margin_PK, allow_pickle=False)
            torch.save(trained, self.folder / "trained.pt")
            done = {
                "history": self.history,
                "delayed": learner.delayed,
                "centers": centers,
                "scales": scales,
                "best_select_loss": self.best,
                "labels": learner.labels_P.tolist() if learner.config.loss.smoothing else None,
            }
            partial = self.folder / f"{DONE}.part"
            partial.write_text(json.dumps(done))
            partial.rename(self.folder / DONE)
            for old in self.folder.glob("step-*.pt"):
                old.unlink()
        learner.group.wait()
