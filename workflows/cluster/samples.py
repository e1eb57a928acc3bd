"""Samples of a policy, scored while others are still drawn, and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.sampler import Question, Samples
from panoply.config.laser import VERIFIER
from panoply.data.tasks import Task
from panoply.laser.scored import ScoredPrompt, read_scored, write_scored
from panoply.wire.request import Chat
from workflows.cluster.arms import Arms, ArmScores
from workflows.cluster.rollouts import calls, rollouts


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Where samples and their scores come from."""

    pool: Sequence[Any]
    """Handles of samplers."""
    rows: int
    """Samples that a sampler draws together."""
    arms: Arms
    names: tuple[str, ...]
    """Of the arms."""
    verifies: bool
    seed: int

    def scored(
        self,
        file: Path,
        tasks: Sequence[Task],
        n: int,
        wanted: Callable[[str], Sequence[str]],
        round: int,
        adapter: str,
    ) -> list[ScoredPrompt]:
        """Returns n scored samples of each prompt, in the order of the prompts' ids.

        Args:
            file: holds them when they are there, and is read when it is there.
            tasks: the prompts.
            n: samples of each.
            wanted: arms that score the responses to a prompt, by its id.
            round: of the run; another one draws other samples.
            adapter: folder of the policy's adapters; empty: the model as it is.
        """
        if not file.exists():
            known = {task.prompt_id: task for task in tasks}
            questions = [Question(task.prompt_id, task.prompt) for task in tasks]
            asked: list[tuple[Samples, dict[str, Future[ArmScores]]]] = []
            several = calls(questions, n, self.rows)
            for samples in rollouts(self.pool, several, n, self.seed, round, adapter):
                task = known[samples.prompt_id]
                texts = tuple(one.text for one in samples.responses)
                chat = Chat(tuple(task.prompt), texts, task.label)
                names = [*wanted(task.prompt_id), *([VERIFIER] if self.verifies else [])]
                asked.append((samples, {name: self.arms.ask(name, chat) for name in names}))
            found = [self._gathered(known[s.prompt_id], s, later) for s, later in asked]
            write_scored(file, found, self.names)
        return read_scored(file, self.names)

    def _gathered(
        self, task: Task, samples: Samples, later: Mapping[str, Future[ArmScores]]
    ) -> ScoredPrompt:
        said = {name: future.result() for name, future in later.items()}
        missing = (float("nan"),) * len(samples.responses)
        scores = [said[name].score_n if name in said else missing for name in self.names]
        verdicts = said[VERIFIER].score_n if VERIFIER in said else missing
        return ScoredPrompt(
            prompt_id=task.prompt_id,
            source=task.source,
            responses=tuple(one.text for one in samples.responses),
            ended=tuple(one.ended for one in samples.responses),
            verdict_n=np.array(verdicts, np.float64),
            score_Kn=np.array(scores, np.float64),
            failures={n: said[n].failure for n in self.names if n in said and said[n].failure},
        )
