"""Best of n without training: the best of a policy's samples by each arm and ensemble.

    y_1..N ~ pi(. | x), scored by all arms and judged by the verifier
    for each n and strategy: E_n, the expected verdict of the best of n of them

E_n is the mean over all sets of n of the N samples (`panoply.measure.best_of_n`), so that every n
has all samples, and the same ones for all strategies. Where the verdicts turn down while the
strategy's own scores go on rising, it is over-optimized. LASeR's variant for long contexts (arXiv
2410.01735, section 4.1) is the row `laser`: the bandit that a run of `jobs.laser` left picks the
arm of each prompt.
"""

from __future__ import annotations

import json
import math
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
from panoply.measure.best_of_n import expected_best, kl_of, turn_down
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

Rankings: TypeAlias = Mapping[str, Sequence[Array]]
"""By strategy, the score of each sample of each prompt."""


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
        rankings = rank_responses(rollouts, names, routes)
        with whole_file(out / "choices.parquet") as partial:
            pq.write_table(choice_table(rankings, rollouts), partial)
        routed = list(routes.values())
        metrics: dict[str, Any] = {
            **measure(rankings, rollouts, sizes),
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


def rank_responses(
    rollouts: Sequence[Rollout], arms: Sequence[str], routes: Mapping[str, str]
) -> Rankings:
    """Returns the score of each response by every strategy, on all samples of its prompt."""

    def ranking(strategy: str, rollout: Rollout) -> Array:
        if strategy in ENSEMBLES:
            return chosen_scores(strategy, rollout.score_Kn)
        arm = routes[rollout.prompt_id] if strategy == LASER else strategy
        return rollout.score_Kn[arms.index(arm)]

    strategies = (*([LASER] if routes else []), *arms, *ENSEMBLES)
    return {name: [ranking(name, rollout) for rollout in rollouts] for name in strategies}


def measure(
    rankings: Rankings, rollouts: Sequence[Rollout], sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns right choices by strategy and n, and how far each strategy is over-optimized.

    Proxies have no common unit: each is shown in deviations of its scores of all samples.
    """
    verdicts = [rollout.verdict_n for rollout in rollouts]
    shares: dict[str, Any] = {}
    optimization: dict[str, Any] = {}
    for name, scores in rankings.items():
        gold_PS = expected_of_all(scores, verdicts, sizes)
        shares[name] = _by_size(gold_PS, sizes)
        every = np.concatenate(scores)
        spread = float(np.nanstd(every)) if np.isfinite(every).any() else 0.0
        proxy_PS = expected_of_all(scores, scores, sizes)
        turn = turn_down(gold_PS)
        peak = turn.pop("peak")
        optimization[name] = {
            "proxy_rise": (_mean(proxy_PS[:, -1]) - _mean(proxy_PS[:, 0])) / (spread or math.nan),
            "peak": sizes[int(peak)] if isinstance(peak, float) and math.isfinite(peak) else None,
            "turn": turn,
        }
    # Who knew the verdicts would choose a right response wherever there is one.
    shares[ANY_RIGHT] = _by_size(expected_of_all(verdicts, verdicts, sizes), sizes)
    kl = {str(n): kl_of(n) for n in sizes}
    return {"best_of_n": shares, "optimization": {"kl": kl, "strategies": optimization}}


def expected_of_all(
    proxies: Sequence[Array], golds: Sequence[Array], sizes: Sequence[int]
) -> Array:
    """Returns the expected gold of the best of n of each prompt, `[P, S]`."""
    rows = [expected_best(a, b, sizes) for a, b in zip(proxies, golds, strict=True)]
    return np.stack(rows)


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


def _by_size(gold_PS: Array, sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Returns the mean over prompts and its interval by n."""
    return {
        str(n): {"value": _mean(gold_P), "ci95": mean_interval(gold_P)}
        for n, gold_P in zip(sizes, gold_PS.T, strict=True)
    }


def _mean(values_P: Array) -> float:
    finite = values_P[np.isfinite(values_P)]
    return float(finite.mean()) if len(finite) else float("nan")
