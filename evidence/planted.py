"""How much of the planted truth a gate finds: `python -m evidence.planted --json FILE`.

The recipe `embedded` on several seeds, each moving the world, the split and every initialization;
then the homogeneous world of the same seed, where a gate has nothing to find. Texts are the same
in both worlds, so the second costs no embedding.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import harness
from benchmarks.harness import over_seeds, run, setting, write_figures
from jobs.recipes import ARMORM
from panoply.config.armorm import ArmoRMConfig

NAMES = ("oracle", "best_fixed", "gate", "recovered", "weight_correlation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run in each world per seed."""
    num_workers: int = 2
    """Embedding actors and Ray Train workers."""


def main(options: Options) -> None:
    """Runs the experiment and prints a table."""
    import ray
    import torch
    from rich.console import Console
    from rich.table import Table

    from panoply.report.progress import RunLogger
    from workflows.armorm import run_armorm

    console = Console(log_path=False)
    watch = RunLogger(console)
    table = Table("seed", *NAMES, "gate - fixed, homogeneous", "seconds")
    found: dict[str, list[float]] = {name: [] for name in (*NAMES, "homogeneous")}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            start = time.perf_counter()
            config = replace(
                ARMORM["embedded"][1],
                seed=seed,
                num_workers=options.num_workers,
                leave_one_out=False,
            )
            planted = run_armorm(replace(config, out=f"{scratch}/{seed}"), watch)["planted"]
            even = run_armorm(homogeneous(config, f"{scratch}/{seed}-even"), watch)["planted"]
            for name in NAMES:
                found[name].append(planted[name])
            found["homogeneous"].append(even["gate"] - even["best_fixed"])
            numbers = [*(found[name][-1] for name in NAMES), found["homogeneous"][-1]]
            seconds = time.perf_counter() - start
            table.add_row(str(seed), *(f"{x:.3f}" for x in numbers), f"{seconds:.0f}")
            console.print(table)
    figures: dict[str, Any] = {name: over_seeds(values) for name, values in found.items()}
    gap = {n: figures[n]["ratio"] for n in ("oracle", "gate", "best_fixed")}
    figures["recovered"]["of_means"] = (gap["gate"] - gap["best_fixed"]) / (
        gap["oracle"] - gap["best_fixed"]
    )
    figures["setting"] = setting(
        *(torch, ray),
        seeds=list(options.seeds),
        workers=options.num_workers,
        dtype=ARMORM["embedded"][1].backbone.dtype,
        per_seed=found,
    )
    write_figures(options.json, figures)
    of_means = figures["recovered"]["of_means"]
    console.print({name: round(figures[name]["ratio"], 3) for name in found})
    console.print(f"recovered from the mean accuracies: {of_means:.3f}; written to {options.json}")


def homogeneous(config: ArmoRMConfig, out: str) -> ArmoRMConfig:
    """Returns the same run in the world where every domain wants the same."""
    assert config.planted is not None
    return replace(config, out=out, planted=replace(config.planted, homogeneous=True))


if __name__ == "__main__":
    run(main, Options)
