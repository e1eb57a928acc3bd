"""Cost of a decision: `python -m benchmarks.bandit --json FILE`.

The rival is LASeR's LinUCB as released (arXiv 2410.01735): every decision inverts the matrix of
every arm. Both sides choose an arm for one context, get its reward and update; float64, one thread,
CPU seconds. They must choose the same arms where nothing is projected.

`bandit_vs_inversion`: ours as it comes, with contexts projected to 64 numbers.
`bandit_vs_inversion_unprojected`: ours on all of the context.
`decisions_per_second`: chosen and updated one by one, and 64 at a time.
`selector`: the named actor with its log on this machine's disk. Rounds of 64 prompts, begun and
ended (two synced segments); then 64 callers at once, each asking for its own prompt's decision
again and again; wall clock.

Shapes: B decisions, K arms, D size of a context.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures
from panoply.bandit.bandits import LinUCB
from panoply.bandit.update import Choice, init, select_arms, uniforms, update
from panoply.config.bandit import SelectorConfig
from panoply.laser.rounds import RoundPrompt
from panoply.laser.signals import PromptOutcome
from panoply.types import Array

ALPHA = 0.1
CALLERS = 64


def invert(contexts_BD: Array, rewards_BK: Array) -> tuple[list[int], float]:
    """Returns the rival's arms and its seconds."""
    size, num_arms = contexts_BD.shape[1], rewards_BK.shape[1]
    matrices, moments = [np.eye(size) for _ in range(num_arms)], np.zeros((num_arms, size))
    arms: list[int] = []
    start = time.process_time()
    for x, rewards in zip(contexts_BD, rewards_BK, strict=True):
        bounds: list[float] = []
        for k in range(num_arms):
            inverse = np.linalg.inv(matrices[k])
            bounds.append(x @ inverse @ moments[k] + ALPHA * np.sqrt(x @ inverse @ x))
        arm = int(np.argmax(bounds))
        matrices[arm] += np.outer(x, x)
        moments[arm] += rewards[arm] * x
        arms.append(arm)
    return arms, time.process_time() - start


def ours(
    contexts_BD: Array, rewards_BK: Array, max_features: int, batch: int = 1
) -> tuple[list[int], float]:
    """Returns our arms and seconds, `batch` decisions at a time."""
    policy = LinUCB(alpha=ALPHA, max_features=max_features, min_pulls=0)
    state = init(policy, rewards_BK.shape[1], contexts_BD.shape[1])
    arms: list[int] = []
    start = time.process_time()
    for step in range(0, len(contexts_BD), batch):
        contexts, ids = contexts_BD[step : step + batch], range(step, step + batch)
        choice = select_arms(policy, state, contexts, uniforms(0, step, ids))
        rewards = rewards_BK[step : step + batch]
        state = update(state, choice, rewards[np.arange(len(rewards)), choice.arms_B])
        arms += choice.arms_B.tolist()
    return arms, time.process_time() - start


def follow(contexts_BD: Array, rewards_BK: Array, arms: list[int]) -> list[int]:
    """Returns the arms we would choose after each of these decisions; at first all arms tie."""
    size, num_arms = contexts_BD.shape[1], rewards_BK.shape[1]
    policy = LinUCB(alpha=ALPHA, max_features=size, min_pulls=0)
    state, chosen = init(policy, num_arms, size), list[int]()
    for x, rewards, arm in zip(contexts_BD, rewards_BK, arms, strict=False):
        choice = select_arms(policy, state, x[None], [0.0])
        chosen.append(int(choice.arms_B[0]))
        drawn = Choice(choice.contexts_BD, np.array([arm]), np.full((1, num_arms), 1 / num_arms))
        state = update(state, drawn, rewards[[arm]])
    return chosen[1:]


def served(size: int, num_arms: int, num_rounds: int, calls: int) -> dict[str, Any]:
    """Returns what the selector's actor costs: decisions/s of whole rounds, and of many callers.

    Args:
        size: numbers in a context.
        num_arms: reward models.
        num_rounds: rounds that are timed, after one that is not.
        calls: of each caller.
    """
    import ray

    from workflows.cluster.bandit_actor import bandit_actor
    from workflows.cluster.ray_cluster import connect

    connect(1)
    arms, rng = tuple(f"arm{k}" for k in range(num_arms)), np.random.default_rng(0)
    seconds, prompts = list[float](), list[RoundPrompt]()
    with (
        tempfile.TemporaryDirectory() as log,
        bandit_actor(SelectorConfig(), arms, size, log) as actor,
    ):
        for round in range(num_rounds + 1):
            contexts = rng.standard_normal((CALLERS, size)) / np.sqrt(size)
            prompts = [RoundPrompt(f"{round}-{i}", "", x) for i, x in enumerate(contexts)]
            outcomes = [PromptOutcome(prompt_id=p.prompt_id, loss=rng.normal()) for p in prompts]
            start = time.perf_counter()
            ray.get(actor.begin_round.remote(round, prompts, {}))
            ray.get(actor.end_round.remote(round, outcomes))
            seconds.append(time.perf_counter() - start)

        def ask(name: str) -> list[float]:
            waits: list[float] = []
            for _ in range(calls):
                begun = time.perf_counter()
                ray.get(actor.decisions.remote(num_rounds, [name]))
                waits.append(time.perf_counter() - begun)
            return waits

        ray.get(actor.status.remote())
        start = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as pool:
            waits = [w for some in pool.map(ask, [p.prompt_id for p in prompts]) for w in some]
        whole = time.perf_counter() - start
    ray.shutdown()
    p50, p99 = np.percentile(waits, (50, 99))
    return {
        "round_seconds": over_repeats(seconds[1:]),
        "decisions_per_second": CALLERS / median(seconds[1:]),
        "callers": CALLERS,
        "calls_per_second": len(waits) / whole,
        "call_ms": {"p50": 1e3 * float(p50), "p99": 1e3 * float(p99)},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Sizes of the comparison."""

    size: int = 576
    """Numbers in a context."""
    arms: int = 4
    """Reward models."""
    rival_decisions: int = 20
    """Decisions of the rival in a repeat; ours makes 32 times as many."""
    repeats: int = 5
    """Interleaved repeats of each side."""


def main(options: Options) -> None:
    """Runs the benchmark and prints a table.

    Raises:
        RuntimeError: the two disagree on an arm, so that their times say nothing.
    """
    size, arms, rival_decisions = options.size, options.arms, options.rival_decisions
    threadpool_limits(1)
    rng = np.random.default_rng(0)
    contexts = rng.standard_normal((32 * rival_decisions, size)) / np.sqrt(size)
    rewards = rng.random((len(contexts), arms))
    ratios: dict[str, list[float]] = {"projected": [], "unprojected": []}
    per_second: dict[str, list[float]] = {"1": [], "64": []}
    for _ in range(options.repeats):
        theirs, seconds = invert(contexts[:rival_decisions], rewards[:rival_decisions])
        _, whole = ours(contexts[:rival_decisions], rewards[:rival_decisions], size)
        if (same := follow(contexts, rewards, theirs)) != theirs[1:]:
            raise RuntimeError(f"ours chose {same}, the rival {theirs[1:]}")
        _, one = ours(contexts, rewards, 64)
        _, many = ours(contexts, rewards, 64, batch=64)
        each = seconds / rival_decisions
        ratios["projected"].append(each / (one / len(contexts)))
        ratios["unprojected"].append(each / (whole / rival_decisions))
        per_second["1"].append(len(contexts) / one)
        per_second["64"].append(len(contexts) / many)
    figures: dict[str, Any] = {
        "bandit_vs_inversion": over_repeats(ratios["projected"]),
        "bandit_vs_inversion_unprojected": over_repeats(ratios["unprojected"]),
        "decisions_per_second": {
            f"batch_{batch}": over_repeats(rates) for batch, rates in per_second.items()
        },
        "selector": served(size, arms, num_rounds=20, calls=30),
        "setting": setting(
            np,
            size=size,
            arms=arms,
            decisions=[rival_decisions, len(contexts)],
            repeats=options.repeats,
            threads=1,
            dtype="float64",
        ),
    }
    write_figures(options.json, figures)
    print_table(figures)


def print_table(figures: dict[str, Any]) -> None:
    """Prints the figures."""
    rates = figures["decisions_per_second"]
    one_by_one, batched = "decisions/s, one by one", "decisions/s, 64 at a time"
    print_figures(
        figures | {one_by_one: rates["batch_1"], batched: rates["batch_64"]},
        columns=("ratio", "min", "max"),
        notes={"bandit_vs_inversion": "bar: >= 50"},
    )
    actor = figures["selector"]
    waits = "p50 {p50:.1f} ms, p99 {p99:.1f} ms".format(**actor["call_ms"])
    print(f"selector: {actor['decisions_per_second']:,.0f} decisions/s of whole rounds")
    print(f"{actor['callers']} callers: {actor['calls_per_second']:,.0f} calls/s, {waits}")


if __name__ == "__main__":
    run(main, Options)
