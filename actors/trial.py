"""One trial of a search: a MORE run inside its own process, which tells every look at *select*.

A trial is a function of its point alone and its folder is named by it. So it goes on from its own
checkpoint, and a finished one tells again what it told, whichever search asks and whatever became
of that search's own state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from actors.reward_task import TrainTask
from actors.reward_trainer import RewardTrainer
from actors.reward_training import DONE, STOPPED, Run, complete, run_task
from panoply.config.tune import Point, TuneConfig, at_point, num_steps
from panoply.data.schema import digest
from panoply.data.tokens import TokenPairs
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.activation_cache import ActivationCache
from panoply.hub.policy.trainable import load_trainable
from panoply.preference.distributed import Group


def train_trial(point: Point, task: TrainTask, search: TuneConfig) -> None:
    """Trains at a point, or tells what training there gave.

    A run that diverges has an infinite loss, which any other is better than, and tells its reason.

    Args:
        point: what the search chose.
        task: the run that is searched; its folder is that of all trials.
        search: the search.
    """
    begin(task)
    own, told = trial_task(point, task, search), 0
    folder = Path(own.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DONE).exists() and not (folder / STOPPED).exists():
        complete(run := TrialRun.begin(RewardTrainer(own, Group()), folder))
        told = run.told_looks
    if (folder / STOPPED).exists():
        reason = json.loads((folder / STOPPED).read_text())["reason"]
        tune.report({"select_loss": math.inf, "diverged": reason})
        return
    found = looks(json.loads((folder / DONE).read_text())["history"], own)
    found[-1]["finished"] = True
    for look in found[told:]:
        tune.report(look)


class TrialRun(Run):
    """A run that tells its looks, but the last one only when its results are written."""

    told_looks = 0

    def look(self) -> None:
        """Looks at *select* and tells it, with looks from before a restart."""
        super().look()
        if self.over:
            return
        found = looks(self.history, self.learner.task)
        for look in found[self.told_looks :]:
            tune.report(look)
        self.told_looks = len(found)


def looks(history: Sequence[Mapping[str, Any]], task: TrainTask) -> list[dict[str, Any]]:
    """Returns what each look tells: the log loss of the weights that would be kept, and how far.

    How far is in percent of all steps, hence of all pairs, so that ASHA compares trials whose steps
    hold different numbers of pairs.
    """
    total = num_steps(task.config, len(task.pairs.train))
    losses: list[float] = []
    found: list[dict[str, Any]] = []
    for step in history:
        if "select_loss" in step:
            losses.append(step["select_loss"])
            kept = min(losses) if task.config.schedule.keep_best else losses[-1]
            done = (step["step"] + 1) / total
            found.append({"select_loss": kept, "percent": 100 * done, "losses": list(losses)})
    return found


def trial_task(point: Point, task: TrainTask, search: TuneConfig) -> TrainTask:
    """Returns the run at a point, in a folder of its own."""
    rows = task.pairs
    num_sources = int(rows.source_P[rows.train].max()) + 1
    config = at_point(search, point, num_sources, len(rows.train))
    name = digest(json.dumps(point, sort_keys=True))[:16]
    return replace(task, config=config, folder=str(Path(task.folder) / name))


def finish_trial(task: TrainTask) -> None:
    """Takes a run to its end that a scheduler may have stopped."""
    begin(task)
    if not (Path(task.folder) / DONE).exists():
        run_task(task, Group())


def fill_store(task: TrainTask) -> None:
    """Computes what lies below the trained part, once for all trials."""
    begin(task)
    trainable = load_trainable(task.config.backbone, seed=task.config.seed)
    if trainable.lower is not None:
        store = ActivationCache.of(trainable, task.config.backbone, task.store)
        store.fill(trainable, TokenPairs.open(Path(task.tokens)), task.names, Group())


def begin(task: TrainTask) -> None:
    """Sets up the process."""
    silence_libraries()
    torch.set_num_threads(task.threads)
