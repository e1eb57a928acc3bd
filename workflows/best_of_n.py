"""Best of n without training: a policy's samples, every arm's scores, and who picks the best.

    y_1..N ~ pi(. | x), scored by all arms and judged by the verifier
    for each n and strategy: the response among y_1..n that the strategy scores highest

A smaller n takes the first of the samples of a larger one, so that all numbers share them. LASeR's
variant for long contexts (arXiv 2410.01735, section 4.1) is the row `laser`: the bandit that a run
of `jobs.laser` left picks the arm of each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import TypeAdapter

from actors.prompt_embeddings import prompt_states, unit_contexts
from actors.server_sampler import check_server
from panoply.bandit.make import initial_state, make_policy
from panoply.bandit.update import choose, uniforms
from panoply.config import Rendering
from panoply.config.bandit import SelectorConfig
from panoply.config.laser import ENSEMBLES, LASER, BestOfNConfig
from panoply.data.schema import digest
from panoply.data.tasks import Task
from panoply.hub.backbone.pretrained import resolve
from panoply.laser.ensembles import best_of, chosen_scores
from panoply.laser.log import Log, replay
from panoply.laser.scored import ScoredPrompt
from panoply.measure.intervals import mean_interval
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.types import Array
from workflows.cluster.arms import asking
from workflows.cluster.ray_cluster import (
    aborts_when_stopped,
    check_or_write_config,
    connect,
    run_folder,
)
from workflows.cluster.resolve_model import resolve_model
from workflows.cluster.rollouts import sampler_pool
from workflows.cluster.samples import Rollouts
from workflows.cluster.tracking import git_commit, open_tracker, write_json
from workflows.laser import CONTEXTS, all_tasks, cpus_of, verifier_of

BEST_POSSIBLE = "any right"
"""Whether any of the n responses is right: no choice among them can do better."""
FREE = ("num_samplers", "server", "gpus", "experiment")


def run_best_of_n(config: BestOfNConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, OSError: unusable input, before anything expensive starts.
    """
    out = run_folder(config.out)
    resolve(config.model)
    tracker = open_tracker(config.experiment, out)
    arms = [resolve_model(arm) for arm in config.arms.arms()]
    judges = [*arms, *verifier_of(config.prompts)]
    names = config.arms.names
    tasks = tasks_for(config)
    check_server(config.server)
    check_or_write_config(
        out, "config.json", {k: v for k, v in asdict(config).items() if k not in FREE}
    )
    check_or_write_config(
        out, "data.json", {"prompts": digest(*(task.prompt_id for task in tasks))}
    )
    logger.info(f"prompts: {len(tasks):,}, {max(config.n)} samples each")
    with tracker.run(asdict(config), {"method": "best-of-n"}, logger):
        connect(cpus_of(arms) + config.num_samplers)
        with ExitStack() as stack:
            stack.enter_context(aborts_when_stopped())
            routed = routes(config, tasks) if config.laser else {}
            asked = stack.enter_context(asking(judges, config.arms.timeout, str(out)))
            given = (config.num_samplers, config.model, config.sampling, config.rendering)
            pool = stack.enter_context(
                sampler_pool(*given, dtype=config.dtype, gpus=config.gpus, server=config.server)
            )
            verifies = bool(config.prompts.verifier)
            rollouts = Rollouts(pool, config.sampling.rows, asked, names, verifies, config.seed)
            scored = rollouts.scored(
                out / "samples.parquet", tasks, max(config.n), lambda _: names, 0, config.adapter
            )
        choices = chosen(scored, names, config.n, routed)
        pq.write_table(table_of(choices, scored), out / "choices.parquet")
        routes_taken = list(routed.values())
        metrics: dict[str, Any] = {
            "best_of_n": measured(choices, scored, config.n),
            "num_prompts": len(scored),
            "arms_routed": {arm: routes_taken.count(arm) for arm in names if routes_taken},
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics


def tasks_for(config: BestOfNConfig) -> list[Task]:
    """Returns the prompts, without those that the bandit learned from.

    Raises:
        ValueError: none is left, or there is no such run.
    """
    tasks = all_tasks(config.prompts, config.seed)
    if config.laser:
        file = Path(config.laser).expanduser() / "data.json"
        if not file.is_file():
            raise ValueError(f"`laser` is {config.laser!r}, but there is no {str(file)!r}")
        parts = json.loads(file.read_text())
        seen = {*parts["train"], *parts["labeled"]}
        tasks = [task for task in tasks if task.prompt_id not in seen]
    if not tasks:
        raise ValueError("all prompts were trained on by the run of `laser`: give others")
    return tasks


def routes(config: BestOfNConfig, tasks: Sequence[Task]) -> dict[str, str]:
    """Returns the arm that the bandit of a LASeR run picks for each prompt, as it stood at its end.

    Raises:
        ValueError: the run has other arms.
    """
    run = Path(config.laser).expanduser()
    own = json.loads((run / LASER / "log" / "selector.json").read_text())
    arms, size = tuple(own.pop("arms")), int(own.pop("num_features"))
    own.pop("prior")
    if arms != config.arms.names:
        raise ValueError(f"the run of `laser` has arms {arms}, this one {config.arms.names}")
    selector = TypeAdapter(SelectorConfig).validate_python(own)
    record = Log(str(run / LASER / "log"), arms).read()
    state = replay(record, initial_state(selector, len(arms), size))
    trained = json.loads((run / "config.json").read_text())
    backbone = trained["backbone"]
    embed = ray.remote(prompt_states).options(num_cpus=1, num_gpus=config.gpus)
    prompts = [task.prompt for task in tasks]
    rendering = Rendering(**backbone["rendering"])
    model, dtype = backbone["model"], backbone["dtype"]
    states: Array = ray.get(
        embed.remote(model, trained["context_depth"], rendering, dtype, prompts)
    )
    contexts = unit_contexts(states, np.load(run / CONTEXTS, allow_pickle=False)["center"])
    draws = uniforms(config.seed, 0, [task.prompt_id for task in tasks])
    picked = choose(make_policy(selector.policy), state, contexts, draws).arms_B
    return {task.prompt_id: arms[k] for task, k in zip(tasks, picked, strict=True)}


Choices: TypeAlias = Mapping[str, Mapping[int, list[int]]]
"""By strategy and n, the number of the chosen response of each prompt."""


def chosen(
    scored: Sequence[ScoredPrompt],
    arms: Sequence[str],
    sizes: Sequence[int],
    routed: Mapping[str, str],
) -> Choices:
    """Returns what every strategy picks among the first n responses, for every n."""

    def ranking(name: str, one: ScoredPrompt, n: int) -> Array:
        if name in ENSEMBLES:
            return chosen_scores(name, one.score_Kn[:, :n])
        arm = routed[one.prompt_id] if name == LASER else name
        return one.score_Kn[arms.index(arm), :n]

    strategies = (*([LASER] if routed else []), *arms, *ENSEMBLES)
    return {
        name: {n: [best_of(ranking(name, one, n)) for one in scored] for n in sizes}
        for name in strategies
    }


def measured(
    choices: Choices, scored: Sequence[ScoredPrompt], sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns the share of prompts with a right choice, and its interval, by strategy and n."""

    def told(values_N: Array) -> dict[str, Any]:
        known = values_N[np.isfinite(values_N)]
        mean = float(known.mean()) if len(known) else float("nan")
        return {"value": mean, "ci95": mean_interval(values_N)}

    def right(numbers: Sequence[int]) -> Array:
        return np.array([s.verdict_n[i] for s, i in zip(scored, numbers, strict=True)])

    def any_right(n: int) -> Array:
        first = [one.verdict_n[:n][np.isfinite(one.verdict_n[:n])] for one in scored]
        return np.array([verdicts.max() if len(verdicts) else np.nan for verdicts in first])

    found = {
        name: {str(n): told(right(numbers)) for n, numbers in by_n.items()}
        for name, by_n in choices.items()
    }
    return found | {BEST_POSSIBLE: {str(n): told(any_right(n)) for n in sizes}}


def table_of(choices: Choices, scored: Sequence[ScoredPrompt]) -> pa.Table:
    """Returns one row a choice: `prompt_id, source, strategy, n, number, response, verdict`."""
    rows = [
        {
            "prompt_id": one.prompt_id,
            "source": one.source,
            "strategy": name,
            "n": n,
            "number": number,
            "response": one.responses[number],
            "verdict": float(one.verdict_n[number]),
        }
        for name, by_n in choices.items()
        for n, numbers in by_n.items()
        for one, number in zip(scored, numbers, strict=True)
    ]
    return pa.Table.from_pylist(rows)
