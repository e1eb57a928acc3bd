"""Calibration prompts: judged before a LASeR run, for strategies that learn which arm is right.

They are not trained on. The policy's start answers them, all arms score the answers and the
verifier judges them, once for all strategies. Fits are kept in a file, since another machine may
fit other bits.

Shapes: N calibration prompts, K arms, D size of a context inside the bandit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoply.bandit.classifier import fit_classifier
from panoply.bandit.router import fit_router
from panoply.bandit.update import project
from panoply.config.laser import CLASSIFIER, ROUTER, LaserConfig
from panoply.data.tasks import Task
from panoply.files import reading, write_whole
from panoply.laser.rollout import Rollout
from panoply.laser.rounds import initial_state
from panoply.types import Array
from workflows.cluster.rollouts import RolloutCollector

FITS = PRIOR, ROUTES = "prior.json", "routes.json"
"""Files of the fits on the calibration prompts."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Judged samples of the calibration prompts, and the fits on them that a run needs."""

    rollouts: Sequence[Rollout]
    """Samples of the policy's start, scored by all arms."""
    prior_KD: Array | None
    """BayesianRouter's prior; None where that strategy does not run."""
    routes: Mapping[str, str]
    """The arm that the classifier picks for each prompt to train on; empty where it does not
    run."""

    @property
    def num_scores(self) -> int:
        """Scores that it took."""
        return sum(rollout.num_scores for rollout in self.rollouts)


def calibrate(
    config: LaserConfig,
    out: Path,
    tasks: Sequence[Task],
    train: Sequence[Task],
    contexts: Mapping[str, Array],
    collector: RolloutCollector,
) -> Calibration:
    """Samples the calibration prompts, and fits the prior and the classifier of a run.

    Args:
        config: configuration of the run.
        out: folder of the run.
        tasks: the calibration prompts.
        train: the prompts to train on.
        contexts: contexts of both, by prompt id.
        collector: samples the policy's start.

    Raises:
        ValueError: a classifier is needed, and the prompts tell no two arms apart.
    """
    if not tasks:
        return Calibration((), None, {})
    arms = config.arms.names
    round = config.num_rounds + 2  # whose random numbers no other samples have
    rollouts = collector.collect(
        out / "calibration.parquet",
        [Rollout(task=task, scorers=arms) for task in tasks],
        config.num_samples,
        round,
        used=any((out / name).exists() for name in FITS) or any(out.glob("*/*/round.json")),
    )
    auc_NK = np.array([rollout.arm_aucs() for rollout in rollouts], np.float64)
    contexts_NH = np.stack([contexts[rollout.prompt_id] for rollout in rollouts])

    def fit_prior() -> Any:
        selector = config.selector_of(ROUTER)
        assert selector is not None
        state = initial_state(selector, len(arms), contexts_NH.shape[1])
        return fit_router(project(state, contexts_NH), auc_NK).tolist()

    def fit_routes() -> Any:
        classify = fit_classifier(contexts_NH, auc_NK)
        picked = classify(np.stack([contexts[task.prompt_id] for task in train]))
        return {task.prompt_id: arms[k] for task, k in zip(train, picked, strict=True)}

    prior_KD, routes = None, {}
    if ROUTER in config.strategies:
        prior_KD = np.array(_fit_once(out / PRIOR, fit_prior))
    if CLASSIFIER in config.strategies:
        routes = _fit_once(out / ROUTES, fit_routes)
    return Calibration(rollouts, prior_KD, routes)


def _fit_once(file: Path, fit: Callable[[], Any]) -> Any:
    """Returns the fit that the file holds; fits and writes it where there is none."""
    if not file.exists():
        write_whole(file, json.dumps(fit()))
    with reading(file):
        return json.loads(file.read_bytes())
