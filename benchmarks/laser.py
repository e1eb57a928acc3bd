"""What choosing one reward model costs beside asking all: `python -m benchmarks.laser --json FILE`.

K applications of Ray Serve, each a process of one thread with a copy of SmolLM2-135M of its own
(30 layers, random head), score the same samples of the same prompts:

    ensemble    every prompt by all K
    chosen      every prompt by one of them, all as often (what a bandit does while it explores)
    one         every prompt by the same one (what it does once it is sure)

`scoring_wall_vs_ensemble` is wall clock of chosen over ensemble. Replicas are as many on both
sides, so `one` leaves K - 1 of them idle, and its wall clock depends on how many cores there are
to a replica; its CPU seconds do not. `scoring_wall_vs_ensemble_shared` is one arm over an ensemble
of K heads on one backbone, which is one forward like the arm.

`rounds`: whole rounds of `workflows.laser` with the same arms, sampling, scoring and training, for
the bandit and for the mean of all; wall clock of each round.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import tyro

from benchmarks.serve import saved_model
from jobs.recipes import LASER, SAMPLING, SHORT
from panoply.config.laser import ArmsConfig, LaserConfig, PromptsConfig
from panoply.config.serve import ScalingConfig
from panoply.report.progress import RunLogger
from panoply.synthetic.verifiable import verifiable_prompts
from panoply.wire.request import Chat

BAR_OVER_SHARE = 0.15
"""The bar is 1 / K and this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """What is compared."""

    arms: int = 4
    prompts: int = 24
    n: int = 8
    """Samples of a prompt."""
    repeats: int = 5
    rounds: int = 3
    """Whole rounds of each strategy; 0: none."""
    work: str = "~/.cache/panoply-benchmarks"
    json: str = ""


def sampled(args: Args) -> list[Chat]:
    """Returns prompts with samples of the embedded model."""
    from panoply.hub.policy.policy import load_policy
    from panoply.model.sampling import stream

    policy = load_policy("embedded", rendering=SHORT)
    made = verifiable_prompts(args.prompts, seed=0)
    found: list[Chat] = []
    for one in made:
        streams = [[stream(0, 0, one.prompt_id, i) for i in range(args.n)]]
        prompts = [policy.renderer.opening(one.prompt)]
        ((_, samples),) = policy.sample(prompts, streams, SAMPLING)
        texts = tuple(policy.text(s) for s in samples)
        found.append(Chat(tuple(one.prompt), texts))
    return found


@dataclass(frozen=True, slots=True)
class Wall:
    """What it took to score all samples."""

    seconds: float
    cpu_seconds: float
    """Of the arms' processes."""


def scored(arms: Any, chats: Sequence[Chat], asked: Callable[[int], Sequence[str]]) -> Wall:
    """Asks arms for all prompts at once, and waits for the last answer.

    Raises:
        RuntimeError: an arm gave no score.
    """
    before, start = cpu_of_arms(), time.perf_counter()
    later = [arms.ask(name, chat) for i, chat in enumerate(chats) for name in asked(i)]
    if failed := [said.failure for said in (one.result() for one in later) if said.failure]:
        raise RuntimeError(f"{len(failed)} of {len(later)} calls failed: {failed[0]}")
    return Wall(time.perf_counter() - start, cpu_of_arms() - before)


def cpu_of_arms() -> float:
    """Returns the CPU seconds that the replicas of the arms have taken."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::ServeReplica:laser"):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def scoring(args: Args, models: ArmsConfig, shared: ArmsConfig) -> dict[str, Any]:
    """Returns the walls of all kinds, in turns, and their ratios by repeat."""
    from workflows.cluster.arms import serve_arms
    from workflows.cluster.resolve_model import resolve_model

    names, chats = models.names, sampled(args)
    kinds: dict[str, Callable[[int], Sequence[str]]] = {
        "ensemble": lambda _: names,
        "chosen": lambda i: (names[i % len(names)],),
        "one": lambda _: names[:1],
        "shared": lambda _: shared.names,
    }
    walls: dict[str, list[Wall]] = {kind: [] for kind in kinds}
    judges = [resolve_model(arm) for arm in (*models.arms(), *shared.arms())]
    with serve_arms(judges, models.timeout, "benchmark") as arms:
        for kind in ("ensemble", "shared"):  # first batches measure their own speed
            scored(arms, chats, kinds[kind])
        for repeat in range(args.repeats):
            order = list(kinds) if repeat % 2 == 0 else list(kinds)[::-1]
            for kind in order:
                walls[kind].append(scored(arms, chats, kinds[kind]))

    def ratio(kind: str, of: str, field: str) -> dict[str, float]:
        both = zip(walls[kind], walls[of], strict=True)
        return spread([getattr(one, field) / getattr(other, field) for one, other in both])

    return {
        "bar": 1 / args.arms + BAR_OVER_SHARE,
        "scoring_wall_vs_ensemble": ratio("chosen", "ensemble", "seconds"),
        "scoring_wall_vs_ensemble_one": ratio("one", "ensemble", "seconds"),
        "scoring_wall_vs_ensemble_shared": ratio("one", "shared", "seconds"),
        "scoring_cpu_vs_ensemble": ratio("chosen", "ensemble", "cpu_seconds"),
        "scoring_cpu_vs_ensemble_one": ratio("one", "ensemble", "cpu_seconds"),
        "seconds": {kind: spread([wall.seconds for wall in own]) for kind, own in walls.items()},
    }


class Clock(RunLogger):
    """Notes when each round of a run is over."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, list[float]] = {}
        self.start = time.perf_counter()

    def info(self, text: str) -> None:
        """Takes a line of the run, which tells of a round as 'STRATEGY: round N, ...'."""
        strategy, _, told = text.partition(": ")
        if told.startswith("round "):
            self.ends.setdefault(strategy, []).append(time.perf_counter())


def rounds(args: Args, models: ArmsConfig, out: Path) -> dict[str, Any]:
    """Returns the seconds of whole rounds, without each strategy's first, which loads models."""
    from workflows.laser import run_laser

    recipe = LASER["embedded"][1]
    config: LaserConfig = replace(
        recipe,
        out=str(out),
        arms=models,
        prompts=PromptsConfig(num_made=2 * args.prompts, num_held_out=0),
        num_samples=args.n,
        num_rounds=args.rounds,
        prompts_per_round=args.prompts,
        evaluate_every=args.rounds,
        strategies=("laser", "mean"),
    )
    clock = Clock()
    run_laser(config, clock)
    found: dict[str, Any] = {}
    for strategy, ends in clock.ends.items():
        found[strategy] = spread([b - a for a, b in pairwise(ends)])
    found["laser_vs_mean"] = found["laser"]["median"] / found["mean"]["median"]
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the smallest and the largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Runs the benchmark, prints a table and writes the figures."""
    from rich.console import Console

    from panoply.report.tables import add_row, empty_table, number
    from workflows.cluster.ray_cluster import connect
    from workflows.cluster.tracking import write_json

    args = tyro.cli(Args, description=__doc__)
    work = Path(args.work).expanduser()
    alone, heads = saved_model(work), saved_model(work, args.arms)
    names = [f"arm{k}={alone}" for k in range(args.arms)]
    one_thread = ScalingConfig(cpus=1.0)
    models = ArmsConfig(models=tuple(names), scaling=one_thread, timeout=600.0)
    shared = ArmsConfig(models=(f"shared={heads}",), scaling=one_thread)
    connect(args.arms + 3)
    figures: dict[str, Any] = {"scoring": scoring(args, models, shared)}
    if args.rounds:
        with tempfile.TemporaryDirectory() as place:
            figures["rounds"] = rounds(args, models, Path(place) / "run")
    table = empty_table("One arm a prompt beside all arms", "figure", ("median", "min", "max"))
    for section in figures.values():
        for name, value in section.items():
            if isinstance(value, dict) and "median" in value:
                add_row(table, name, *(number(value[key]) for key in ("median", "min", "max")))
    Console().print(table)
    if args.json:
        write_json(Path(args.json).expanduser(), figures)


if __name__ == "__main__":
    main()
