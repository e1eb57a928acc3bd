"""A trial of a search: a MORE run inside its own process that reports every evaluation on *select*.

A trial is a function of its point alone and its folder is named by it. So it resumes from its own
checkpoint, and a finished one reports again what it reported, whichever search asks and whatever
became of that search's own state.
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

from actors.reward_trainer import RewardTrainer, TrainTask
from actors.training_loop import DONE, STOPPED
from panoply.config.tune import Point, TuneConfig, at_point, num_steps
from panoply.data.schema import digest
from panoply.data.tokens import TokenPairs
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.policy.activation_cache import ActivationCache
from panoply.hub.policy.trainable import load_trainable
from panoply.preference.distributed import Group


def train_trial(point: Point, task: TrainTask, search: TuneConfig) -> None:
    """Trains at a point, or reports what training there gave.

    A run that diverges has an infinite loss, which any other is better than, and reports its
    reason.

    Args:
        point: hyperparameters that the search chose.
        task: the run that is searched; its folder is that of all trials.
        search: the search.
    """
    begin(task)
    task, num_reported = trial_task(point, task, search), 0
    folder = Path(task.folder)
    if not (folder / DONE).exists() and not (folder / STOPPED).exists():
        trainer = TrialTrainer(task, Group())
        trainer.run()
        num_reported = trainer.num_reported
    if (folder / STOPPED).exists():
        reason = json.loads((folder / STOPPED).read_text())["reason"]
        tune.report({"select_loss": math.inf, "diverged": reason})
        return
    results = eval_results(json.loads((folder / DONE).read_text())["history"], task)
    results[-1]["finished"] = True
    for result in results[num_reported:]:
        tune.report(result)


class TrialTrainer(RewardTrainer):
    """A trainer that reports its evaluations, the last one only after its results are written."""

    num_reported = 0

    def evaluate(self) -> None:
        """Evaluates on *select* and reports it, with evaluations from before a restart."""
        super().evaluate()
        if self.over:
            return
        results = eval_results(self.history, self.task)
        for result in results[self.num_reported :]:
            tune.report(result)
        self.num_reported = len(results)


def eval_results(history: Sequence[Mapping[str, Any]], task: TrainTask) -> list[dict[str, Any]]:
    """Returns the result of each evaluation: log loss of the parameters to keep, and the progress.

    Each has both of all evaluations so far too, as `curve`.

    Progress is in percent of all steps, hence of all pairs, so that ASHA compares trials whose
    steps hold different numbers of pairs.
    """
    total = num_steps(task.config, len(task.pairs.train))
    losses: list[float] = []
    curve: list[tuple[float, float]] = []
    results: list[dict[str, Any]] = []
    for step in history:
        if "select_loss" in step:
            losses.append(step["select_loss"])
            kept = min(losses) if task.config.schedule.keep_best else losses[-1]
            percent = 100 * ((step["step"] + 1) / total)
            curve.append((percent, kept))
            result = {"select_loss": kept, "percent": percent}
            results.append(result | {"losses": list(losses), "curve": list(curve)})
    return results


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
        RewardTrainer(task, Group()).run()


def fill_cache(task: TrainTask) -> None:
    """Computes the activations below the trained part, once for all trials."""
    begin(task)
    trainable = load_trainable(task.config.backbone, seed=task.config.seed)
    if trainable.frozen_prefix is not None:
        cache = ActivationCache.of(trainable, task.config.backbone, task.store)
        cache.fill(trainable, TokenPairs.open(Path(task.tokens)), task.names, Group())


def begin(task: TrainTask) -> None:
    """Prepares the process."""
    silence_libraries()
    torch.set_num_threads(task.threads)
