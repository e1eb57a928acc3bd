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

from actors import checkpoints
from actors.reward_task import TrainTask
from actors.reward_trainer import NonFinite, RewardTrainer
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.preference.distributed import Group
from panoply.preference.more import MoreState

TOLD_EVERY_SECONDS = 1.0
DONE, STOPPED, PROGRESS = "done.json", "stopped.json", "progress.json"


def train_models(config: Mapping[str, Sequence[TrainTask]]) -> None:
    """Trains models one after the other; those that are done are skipped."""
    silence_libraries()
    group = worker_group()
    for task in config["tasks"]:
        if task.threads:
            torch.set_num_threads(task.threads)
        if not (Path(task.folder) / DONE).exists():
            run_task(task, group)
    ray.train.report({})


def worker_group() -> Group:
    """Returns the workers of this Ray Train run, seen from this one."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    return Group(rank, size, ray.train.torch.get_device() if size > 1 else torch.device("cpu"))


def run_task(task: TrainTask, group: Group) -> None:
    """Trains one model and leaves its weights, margins and history in the task's folder."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    complete(Run.begin(RewardTrainer(task, group), folder))


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

    def __init__(self, learner: RewardTrainer, folder: Path) -> None:
        self.learner, self.folder = learner, folder
        self.step, self.best, self.best_trained = 0, float("inf"), None
        self.waited = 0
        self.history: list[dict[str, Any]] = []
        self.told = 0.0

    @classmethod
    def begin(cls, learner: RewardTrainer, folder: Path) -> Self:
        """Begins anew, or goes on from the newest checkpoint."""
        run = cls(learner, folder)
        state = checkpoints.newest(folder)
        if state is not None:
            learner.weights.load(state)
            momentum = state["momentum"]
            learner.weighting = MoreState(
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
        """Writes a checkpoint."""
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
            checkpoints.save(self.folder, self.step, state)
        learner.group.wait()

    def tell(self) -> None:
        """Writes how far the run is, for those who watch."""
        now = time.monotonic()
        if self.learner.group.rank == 0 and now - self.told >= TOLD_EVERY_SECONDS:
            self.told = now
            told = {"step": self.step, "num_steps": self.learner.num_steps}
            checkpoints.write_json(self.folder / PROGRESS, told)

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
            checkpoints.write_json(self.folder / DONE, done)
            checkpoints.clear(self.folder)
        learner.group.wait()
