"""Prompts whose answers were judged before a LASeR run, and what is learned from them.

They are not trained on. The policy's start answers them, all arms score the answers and the
verifier judges them, once for all strategies. What is fitted is kept in a file, since another
machine may fit other bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoply.bandit.classifier import fit_classifier
from panoply.bandit.make import initial_state
from panoply.bandit.router import fit_router
from panoply.bandit.update import project
from panoply.config.laser import CLASSIFIER, ROUTER, LaserConfig
from panoply.data.tasks import Task
from panoply.files import write_whole
from panoply.laser.rewards import verified
from panoply.laser.scored import ScoredPrompt
from panoply.types import Array
from workflows.cluster.samples import Rollouts


@dataclass(frozen=True, slots=True)
class Labeled:
    """What is known of labeled prompts.

    Shapes: N labeled prompts, K arms, D size of a context inside the bandit.
    """

    scored: Sequence[ScoredPrompt]
    """Samples of the policy's start, scored by all arms."""
    prior_KD: Array | None
    """BayesianRouter's prior; None where that strategy does not run."""
    routes: Mapping[str, str]
    """The arm that the classifier picks for each prompt to train on; empty as above."""

    @property
    def num_scores(self) -> int:
        """Scores that it took."""
        return sum(int(np.isfinite(one.score_Kn).sum()) for one in self.scored)


def labeled_of(
    config: LaserConfig,
    out: Path,
    tasks: Sequence[Task],
    train: Sequence[Task],
    contexts: Mapping[str, Array],
    rollouts: Rollouts,
) -> Labeled:
    """Samples the labeled prompts, and fits what the strategies of the run need.

    Args:
        config: of the run.
        out: its folder.
        tasks: the labeled prompts.
        train: the prompts to train on.
        contexts: of both, by prompt id.
        rollouts: of the policy's start.

    Raises:
        ValueError: the labeled prompts tell no two arms apart, and a classifier is to.
    """
    if not tasks:
        return Labeled((), None, {})
    arms, round = config.arms.names, config.num_rounds + 2  # random numbers of no other look
    scored = rollouts.scored(out / "labeled.parquet", tasks, config.n, lambda _: arms, round, "")
    rows = [[verified(row, one.verdict_n) for row in one.score_Kn] for one in scored]
    verified_NK = np.array(rows, np.float64)
    own = np.stack([contexts[one.prompt_id] for one in scored])

    def prior() -> Any:
        selector = config.selector_of(ROUTER)
        assert selector is not None
        state = initial_state(selector, len(arms), own.shape[1])
        return fit_router(project(state, own), verified_NK).tolist()

    def routes() -> Any:
        picked = fit_classifier(own, verified_NK)(np.stack([contexts[t.prompt_id] for t in train]))
        return {task.prompt_id: arms[k] for task, k in zip(train, picked, strict=True)}

    return Labeled(
        scored,
        np.array(_once(out / "prior.json", prior)) if ROUTER in config.strategies else None,
        _once(out / "routes.json", routes) if CLASSIFIER in config.strategies else {},
    )


def _once(file: Path, fit: Callable[[], Any]) -> Any:
    """Returns what was fitted in this run."""
    if not file.exists():
        write_whole(file, json.dumps(fit()))
    return json.loads(file.read_text())
