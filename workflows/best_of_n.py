"""Best of n without training: the best of a policy's samples by each arm and ensemble.

    y_1..N ~ pi(. | x), scored by all arms and judged by the verifier
    for each n and strategy: the response among y_1..n that the strategy scores highest

A smaller n takes the first of the samples of a larger one, so that all numbers share them. LASeR's
variant for long contexts (arXiv 2410.01735, section 4.1) is the row `laser`: the bandit that a run
of `jobs.laser` left picks the arm of each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.server_sampler import check_server
from panoply.config import as_dict
from panoply.config.laser import ENSEMBLES, LASER, BestOfNConfig
from panoply.data.schema import digest
from panoply.data.tasks import Task
from panoply.files import whole_file, write_json
from panoply.hub.backbone.pretrained import resolve
from panoply.laser.ensembles import best_of, chosen_scores
from panoply.laser.rollout import Rollout, summed_truncation
from panoply.measure.intervals import mean_interval
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.types import Array
from workflows.cluster.keys import endpoint_variables
from workflows.cluster.prompt_contexts import learned_routes
from workflows.cluster.ray_cluster import aborts_when_stopped, connect
from workflows.cluster.rollouts import (
    model_cpus,
    open_collector,
    read_prompts,
    resolved_scorers,
)
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers

ANY_RIGHT = "any right"
"""Row of an upper bound: whether any of the n responses is right."""

Choices: TypeAlias = Mapping[str, Mapping[int, list[int]]]
"""By strategy and n, the number of the chosen response of each prompt."""


@one_writer
def run_best_of_n(config: BestOfNConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, OSError: unusable input, before anything expensive starts.
    """
    # Everything that can be wrong is looked up first.
    out = run_folder(config.out)
    resolve(config.backbone.model)
    trackers = open_trackers(config, out)
    scorers = resolved_scorers(config.arms, config.prompts)
    tasks = unseen_prompts(config)
    check_server(config.server)
    check_folder(out, config)
    data_ids = {
        "prompts": digest(*(task.prompt_id for task in tasks)),
        "labels": digest(*(str(task.label) for task in tasks)),
    }
    claim(out, config, data_ids)
    # A single sample is what every larger number is compared with.
    names, sizes = config.arms.names, sorted({1, *config.num_samples})
    most = sizes[-1]
    logger.info(f"prompts: {len(tasks):,}, {most} samples each")

    with trackers.run(as_dict(config), {"method": "best-of-n"}, logger):
        variables = [*endpoint_variables(scorers), config.server.key_variable]
        connect(model_cpus(scorers) + config.num_samplers, variables)
        with aborts_when_stopped():
            logger.stage(1, 2, "start the arms")
            routes = learned_routes(config, tasks) if config.laser else {}
            with open_collector(config, scorers, str(out)) as collector:
                logger.stage(2, 2, "sample and score")
                rollouts = collector.collect(
                    out / "samples.parquet",
                    [Rollout(task=task, scorers=names) for task in tasks],
                    most,
                    0,
                    config.backbone.adapter,
                )
        choices = choose_responses(rollouts, names, sizes, routes)
        with whole_file(out / "choices.parquet") as partial:
            pq.write_table(choice_table(choices, rollouts), partial)
        routed = list(routes.values())
        metrics: dict[str, Any] = {
            "best_of_n": right_shares(choices, rollouts, sizes),
            "num_prompts": len(rollouts),
            "truncated": summed_truncation(rollout.truncation for rollout in rollouts),
            "arms_routed": {arm: routed.count(arm) for arm in names} if routed else {},
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def unseen_prompts(config: BestOfNConfig) -> list[Task]:
    """Returns the prompts, without those that the bandit of `config.laser` learned from.

    Raises:
        ValueError: none is left, or there is no such run.
    """
    tasks = read_prompts(config)
    if config.laser:
        file = Path(config.laser).expanduser() / "data.json"
        if not file.is_file():
            raise ValueError(f"`laser` is {config.laser!r}, but there is no {str(file)!r}")
        parts = json.loads(file.read_text())
        # Runs named calibration prompts "labeled" before.
        seen = {*parts["train"], *parts.get("calibration", ()), *parts.get("labeled", ())}
        tasks = [task for task in tasks if task.prompt_id not in seen]
    if not tasks:
        raise ValueError(
            "`prompts` has only prompts that the run of `laser` was trained on: name others"
        )
    return tasks


def choose_responses(
    rollouts: Sequence[Rollout],
    arms: Sequence[str],
    sizes: Sequence[int],
    routes: Mapping[str, str],
) -> Choices:
    """Returns the best of the first n responses by every strategy, for every n."""

    def ranking(strategy: str, rollout: Rollout, n: int) -> Array:
        if strategy in ENSEMBLES:
            return chosen_scores(strategy, rollout.score_Kn[:, :n])
        arm = routes[rollout.prompt_id] if strategy == LASER else strategy
        return rollout.score_Kn[arms.index(arm), :n]

    choices: dict[str, dict[int, list[int]]] = {}
    for strategy in (*([LASER] if routes else []), *arms, *ENSEMBLES):
        choices[strategy] = {}
        for n in sizes:
            choices[strategy][n] = [best_of(ranking(strategy, r, n)) for r in rollouts]
    return choices


def right_shares(
    choices: Choices, rollouts: Sequence[Rollout], sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns the share of prompts with a right choice, and its interval, by strategy and n."""
    shares: dict[str, dict[str, Any]] = {}
    for strategy, by_n in choices.items():
        shares[strategy] = {}
        for n, numbers in by_n.items():
            verdicts = [r.verdict_n[i] for r, i in zip(rollouts, numbers, strict=True)]
            shares[strategy][str(n)] = _share(np.array(verdicts, np.float64))
    shares[ANY_RIGHT] = {}
    for n in sizes:
        # fmax is NaN only where no response is judged.
        best = [np.fmax.reduce(rollout.verdict_n[:n]) for rollout in rollouts]
        shares[ANY_RIGHT][str(n)] = _share(np.array(best, np.float64))
    return shares


def choice_table(choices: Choices, rollouts: Sequence[Rollout]) -> pa.Table:
    """Returns one row a choice: `prompt_id, source, strategy, n, number, response, verdict`."""
    rows: list[dict[str, Any]] = []
    for strategy, by_n in choices.items():
        for n, numbers in by_n.items():
            for rollout, number in zip(rollouts, numbers, strict=True):
                rows.append(
                    {
                        "prompt_id": rollout.prompt_id,
                        "source": rollout.source,
                        "strategy": strategy,
                        "n": n,
                        "number": number,
                        "response": rollout.responses[number],
                        "verdict": float(rollout.verdict_n[number]),
                    }
                )
    return pa.Table.from_pylist(rows)


def _share(verdicts_N: Array) -> dict[str, Any]:
    judged = verdicts_N[np.isfinite(verdicts_N)]
    mean = float(judged.mean()) if len(judged) else float("nan")
    return {"value": mean, "ci95": mean_interval(verdicts_N)}
