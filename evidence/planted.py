"""How much of the planted truth a gate finds: `python -m evidence.planted --json FILE`.

The recipe `embedded` on several seeds, each moving the world, the split and every initialization;
then the homogeneous world of the same seed, where a gate has nothing to find. Texts are the same
in both worlds, so the second costs no embedding.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from jobs.recipes import ARMORM
from panoply.config.armorm import ArmoRMConfig

NAMES = ("oracle", "best_fixed", "gate", "recovered", "weight_correlation")


def figure(values: list[float], **more: Any) -> dict[str, Any]:
    """Returns the mean over seeds with the extremes."""
    return {"ratio": sum(values) / len(values), "min": min(values), "max": max(values), **more}


def main(json: Path, seeds: tuple[int, ...] = (0, 1, 2, 3, 4), num_workers: int = 2) -> None:
    """Runs the benchmark and prints a table.

    Args:
        json: where the figures go.
        seeds: one run in each world per seed.
        num_workers: embedding actors and Ray Train workers.
    """
    import ray
    import torch
    from rich.console import Console
    from rich.table import Table

    from panoply.report.progress import RunLogger
    from workflows.armorm import run_armorm
    from workflows.cluster.tracking import write_json

    console = Console(log_path=False)
    watch = RunLogger(console)
    table = Table("seed", *NAMES, "gate - fixed, homogeneous", "seconds")
    found: dict[str, list[float]] = {name: [] for name in (*NAMES, "homogeneous")}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            start = time.perf_counter()
            config = replace(
                ARMORM["embedded"][1], seed=seed, num_workers=num_workers, leave_one_out=False
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
    figures: dict[str, Any] = {name: figure(values) for name, values in found.items()}
    gap = {n: figures[n]["ratio"] for n in ("oracle", "gate", "best_fixed")}
    figures["recovered"]["of_means"] = (gap["gate"] - gap["best_fixed"]) / (
        gap["oracle"] - gap["best_fixed"]
    )
    figures["setting"] = {
        "seeds": list(seeds),
        "workers": num_workers,
        "dtype": ARMORM["embedded"][1].backbone.dtype,
        "versions": {"torch": torch.__version__, "ray": ray.__version__},
        "per_seed": found,
    }
    write_json(json, figures)
    of_means = figures["recovered"]["of_means"]
    console.print({name: round(figures[name]["ratio"], 3) for name in found})
    console.print(f"recovered from the mean accuracies: {of_means:.3f}; written to {json}")


def homogeneous(config: ArmoRMConfig, out: str) -> ArmoRMConfig:
    """Returns the same run in the world where every domain wants the same."""
    assert config.planted is not None
    return replace(config, out=out, planted=replace(config.planted, homogeneous=True))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m evidence.planted")
