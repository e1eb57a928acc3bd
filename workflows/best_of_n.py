"""Best of n without training: the best of a policy's samples by each arm and ensemble.

    y_1..N ~ pi(. | x), scored by all arms and judged by the verifier
    for each n and strategy: E_n, the expected verdict of the best of n of them

E_n is the mean over all sets of n of the N samples (`panoply.measure.best_of_n`), so that every n
has all samples, and the same ones for all strategies. Where the verdicts turn down while the
strategy's own scores go on rising, it is over-optimized. LASeR's variant for long contexts (arXiv
2410.01735, section 4.1) is the row `laser`: the bandit that a run of `jobs.laser` left picks the
arm of each prompt. `run_recorded` does the same with scores and verdicts of a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.server_sampler import check_server
from panoply.config import as_dict
from panoply.config.best_of_n import RecordedBestOfNConfig
from panoply.config.laser import BestOfNConfig
from panoply.data.samples import read_samples
from panoply.data.schema import digest
from panoply.data.tasks import Task
from panoply.files import whole_file, write_json
from panoply.hub.backbone.pretrained import resolve
from panoply.laser.ensembles import best_of
from panoply.laser.rollout import Rollout, summed_truncation
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from workflows.cluster.choices_of_n import Rankings, measure, rank_responses
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
        routed = [routes[rollout.prompt_id] for rollout in rollouts] if routes else []
        rankings = rank_responses([rollout.score_Kn for rollout in rollouts], names, routed)
        with whole_file(out / "choices.parquet") as partial:
            pq.write_table(choice_table(rankings, rollouts), partial)
        golds = [rollout.verdict_n for rollout in rollouts]
        metrics: dict[str, Any] = {
            **measure(rankings, golds, sizes),
            "num_prompts": len(rollouts),
            "truncated": summed_truncation(rollout.truncation for rollout in rollouts),
            "arms_routed": {arm: routed.count(arm) for arm in names} if routed else {},
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


@one_writer
def run_recorded(config: RecordedBestOfNConfig, logger: RunLogger) -> dict[str, Any]:
    """Measures best of n on recorded scores; returns what it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, OSError: unusable input.
    """
    out = run_folder(config.out)
    trackers = open_trackers(config, out)
    samples = read_samples(config)
    sizes = config.sizes(samples.num_samples)
    check_folder(out, config)
    claim(out, config, {"samples": digest(*samples.prompts, *map(str, samples.golds))})
    logger.info(f"prompts: {len(samples.prompts):,}, {samples.num_samples} samples each")
    with trackers.run(as_dict(config), {"method": "best-of-n"}, logger):
        rankings = rank_responses(samples.scores, samples.names)
        metrics: dict[str, Any] = {
            **measure(rankings, samples.golds, sizes),
            "num_prompts": len(samples.prompts),
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


def choice_table(rankings: Rankings, rollouts: Sequence[Rollout]) -> pa.Table:
    """Returns the best of all samples of each prompt by each strategy.

    Columns are `prompt_id, source, strategy, n, number, response, verdict`.
    """
    rows: list[dict[str, Any]] = []
    for strategy, scores in rankings.items():
        for rollout, score_n in zip(rollouts, scores, strict=True):
            number = best_of(score_n)
            rows.append(
                {
                    "prompt_id": rollout.prompt_id,
                    "source": rollout.source,
                    "strategy": strategy,
                    "n": len(score_n),
                    "number": number,
                    "response": rollout.responses[number],
                    "verdict": float(rollout.verdict_n[number]),
                }
            )
    return pa.Table.from_pylist(rows)
