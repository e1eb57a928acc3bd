"""Rollouts: samples of a policy from a pool of samplers, scored while others are still drawn."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.policy_round import RankedPrompt
from actors.sampler import Samples
from panoply.config.laser import (
    VERIFIER,
    ArmsConfig,
    BestOfNConfig,
    LaserConfig,
    PromptsConfig,
)
from panoply.config.serve import ServedModelConfig
from panoply.data.read import named_inputs
from panoply.data.tasks import Task, read_tasks, synthetic_prompts
from panoply.hub.backbone.pretrained import load_renderer
from panoply.laser.rollout import Rollout, read_rollouts, write_rollouts
from panoply.scorers.where import local_models
from panoply.secret import Keys
from panoply.wire.request import Chat
from workflows.cluster.arms import Arms, ArmScores, serve_arms
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.resolve_model import resolve_model
from workflows.cluster.samplers import draw_samples, sampler_pool, split_calls


@dataclass(frozen=True, slots=True)
class RolloutCollector:
    """Samples prompts, has the samples scored and judged, and keeps them in a file."""

    samplers: Sequence[Any]
    """Handles of sampler actors."""
    arms: Arms
    names: tuple[str, ...]
    """Names of the arms, in their order."""
    batch_size: int
    """Samples that a sampler draws together."""
    verifies: bool
    """Whether the verifier judges every sample."""
    seed: int

    def collect(
        self,
        file: Path,
        rollouts: Sequence[Rollout],
        num_samples: int,
        round: int,
        adapter: str = "",
        *,
        used: bool = False,
    ) -> list[Rollout]:
        """Returns the rollouts with scored samples, in the order of the prompts' ids.

        Scores that a file lacks for a reason that may have passed are asked for again, unless
        later steps have used the others.

        Args:
            file: file of the samples: read where it is there, else written.
            rollouts: prompts, and the arms that score their samples.
            num_samples: samples of each prompt.
            round: round of the run; another one draws other samples.
            adapter: folder of the policy's adapters; empty: the model as it is.
            used: whether later steps have used the scores, which then stay as they are.
        """
        by_id = {rollout.prompt_id: rollout for rollout in rollouts}
        if not file.exists():
            tasks = [rollout.task for rollout in rollouts]
            calls = split_calls(tasks, num_samples, self.batch_size)
            streams = draw_samples(self.samplers, calls, num_samples, self.seed, round, adapter)
            # Asks without waiting: arms score these samples while the next ones are drawn.
            pending = [
                (samples, self._ask(by_id[samples.prompt_id], samples)) for samples in streams
            ]
            scored = [
                self._scored(by_id[samples.prompt_id], samples, futures)
                for samples, futures in pending
            ]
            write_rollouts(file, scored, self.names)
        elif not used:
            self._ask_again(file, by_id)
        # From the file in any case, so that a resumed run has the same numbers.
        collected: list[Rollout] = []
        for saved in read_rollouts(file, self.names):
            rollout = by_id[saved.prompt_id]
            collected.append(
                replace(saved, task=rollout.task, arm=rollout.arm, scorers=rollout.scorers)
            )
        return collected

    def _ask_again(self, file: Path, by_id: Mapping[str, Rollout]) -> None:
        """Asks again for what is missing in a file for a reason that may have passed."""
        saved = read_rollouts(file, self.names)
        pending: dict[str, dict[str, Future[ArmScores]]] = {}
        for rollout in saved:
            chat = Chat(
                tuple(by_id[rollout.prompt_id].task.prompt),
                rollout.responses,
                by_id[rollout.prompt_id].task.label,
            )
            if rollout.transient:
                pending[rollout.prompt_id] = {
                    name: self.arms.ask(name, chat) for name in sorted(rollout.transient)
                }
        if not pending:
            return
        answered: list[Rollout] = []
        for rollout in saved:
            answers = {
                name: future.result() for name, future in pending.get(rollout.prompt_id, {}).items()
            }
            answered.append(self._with_scores(rollout, answers))
        write_rollouts(file, answered, self.names)

    def _ask(self, rollout: Rollout, samples: Samples) -> dict[str, Future[ArmScores]]:
        """Asks the rollout's arms, and the verifier, for scores of its samples."""
        texts = tuple(response.text for response in samples.responses)
        chat = Chat(tuple(rollout.task.prompt), texts, rollout.task.label)
        names = [*rollout.scorers, VERIFIER] if self.verifies else rollout.scorers
        return {name: self.arms.ask(name, chat) for name in names}

    def _scored(
        self, rollout: Rollout, samples: Samples, futures: Mapping[str, Future[ArmScores]]
    ) -> Rollout:
        """Returns a rollout with its samples and their scores, once these are there."""
        num = len(samples.responses)
        unscored = replace(
            rollout,
            responses=tuple(response.text for response in samples.responses),
            ended=tuple(response.ended for response in samples.responses),
            verdict_n=np.full(num, np.nan),
            score_Kn=np.full((len(self.names), num), np.nan),
        )
        return self._with_scores(unscored, {name: f.result() for name, f in futures.items()})

    def _with_scores(self, rollout: Rollout, answers: Mapping[str, ArmScores]) -> Rollout:
        """Returns a rollout with the scores of some arms in the place of what it had of them."""
        score_Kn, verdict_n = rollout.score_Kn.copy(), rollout.verdict_n
        failures = {name: why for name, why in rollout.failures.items() if name not in answers}
        transient, num_cut = set(rollout.transient - answers.keys()), dict(rollout.num_cut)
        for name, answer in answers.items():
            if answer.transient:
                transient.add(name)
            if name == VERIFIER:
                verdict_n = np.array(answer.score_n, np.float64)
                continue
            score_Kn[self.names.index(name)] = answer.score_n
            if answer.num_cut_n:
                num_cut[name] = answer.num_cut_n
            if answer.failure:
                failures[name] = answer.failure
        return replace(
            rollout,
            verdict_n=verdict_n,
            score_Kn=score_Kn,
            failures=failures,
            num_cut=num_cut,
            transient=frozenset(transient),
        )


@contextmanager
def open_collector(
    config: LaserConfig | BestOfNConfig, scorers: Sequence[ServedModelConfig], run: str
) -> Generator[RolloutCollector]:
    """Starts the arms and the samplers of a run, and ends them afterwards.

    Args:
        config: configuration of the run.
        scorers: `resolved_scorers`.
        run: name of the arms' applications.

    Raises:
        ValueError: an arm cannot be started.
    """
    backbone = config.backbone
    pool = sampler_pool(
        config.num_samplers,
        backbone.model,
        config.sampling,
        backbone.rendering,
        dtype=backbone.dtype,
        gpus=config.gpus,
        server=config.server,
    )
    # Samplers load their models while the arms start.
    with pool as samplers, serve_arms(scorers, config.arms.timeout, run) as arms:
        yield RolloutCollector(
            samplers,
            arms,
            config.arms.names,
            config.sampling.batch_size,
            bool(config.prompts.verifier),
            config.seed,
        )


def resolved_scorers(arms: ArmsConfig, prompts: PromptsConfig) -> list[ServedModelConfig]:
    """Returns the settings of the arms, and of the verifier where there is one, resolved.

    Raises:
        ValueError, OSError: one of them cannot be had.
    """
    scorers = list(arms.arms())
    if prompts.verifier:
        scorers.append(ServedModelConfig(name=VERIFIER, where=prompts.verifier))
    Keys.read(endpoint_variables(scorers))
    return [resolve_model(scorer) for scorer in scorers]


def model_cpus(scorers: Sequence[ServedModelConfig]) -> int:
    """Returns the CPUs that the models among the scorers may take."""
    cpus = 0.0
    for scorer in scorers:
        for _ in local_models(scorer):
            cpus += scorer.scaling.cpus * scorer.scaling.max_replicas
    return math.ceil(cpus)


def read_prompts(config: LaserConfig | BestOfNConfig) -> list[Task]:
    """Returns the prompts of a file, or synthetic ones.

    Raises:
        ValueError, FileNotFoundError: see `read_tasks`; the template is the policy's.
    """
    prompts, backbone = config.prompts, config.backbone
    if not prompts.file:
        return synthetic_prompts(prompts.num_made, config.seed)
    (origin,) = named_inputs([prompts.file], prompts)
    return read_tasks(origin, load_renderer(backbone.model, backbone.rendering).refusal)


def ranked_prompts(rollouts: Sequence[Rollout]) -> tuple[RankedPrompt, ...]:
    """Returns the rollouts that have a pair, as a policy is trained on them."""
    return tuple(
        RankedPrompt(r.prompt_id, r.task.prompt, r.responses, r.ended, r.pairs, source=r.source)
        for r in rollouts
        if r.pairs
    )
