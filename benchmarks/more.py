"""What MORE's weighting costs: `python -m benchmarks.more --json FILE`.

`more_vs_mixed`: the time of a step weighted by MORE over that of the plain step, on the same pairs
of the same sources, with the same trained weights, in turns. Where a step fits one forward its
weights are its own; `more_vs_mixed_delayed` is the same for a step of several forwards, whose
weights are those of the step before. Bar: at most 1.05.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from evidence.preference import FIVE
from panoply.config import Rendering
from panoply.config.armorm import SyntheticConfig
from panoply.config.preference import (
    Balanced,
    Full,
    More,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured."""

    json: Path
    """Where the figures go."""
    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet`; without it the planted world is taken."""
    num_steps: int = 12
    """Pairs of steps that are timed, after two that are not."""
    pairs_per_step: int = 20
    depth: float = 0.2
    """Share of the layers. Few make the weighting's share look larger, not smaller."""
    threads: int = 1


def main(options: Options) -> None:
    """Runs the benchmark and prints a table."""
    from rich.console import Console
    from rich.table import Table

    from panoply.hub.backbone.backbone import quiet
    from workflows.cluster.tracking import write_json

    quiet()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"setting": setting(options)}
    for name, budget in (("more_vs_mixed", 2**16), ("more_vs_mixed_delayed", 1024)):
        figures[name] = compare(options, budget)
        write_json(options.json, figures)
    table = Table("figure", "ratio", "min", "max", "seconds a step, plain", "weighted")
    for name, found in figures.items():
        if "ratio" in found:
            cells = [f"{found[key]:.3f}" for key in ("ratio", "min", "max", "plain", "weighted")]
            table.add_row(name, *cells)
    Console().print(table)


def compare(options: Options, token_budget: int) -> dict[str, Any]:
    """Returns the ratio of both steps' times: the median of the turns, with the extremes."""
    from actors.reward_trainer import RewardTrainer, TrainTask
    from panoply.preference.distributed import Group
    from panoply.report.progress import RunLogger
    from workflows.cluster.prepare_pairs import read_pairs, tokenize, training_rows

    pairs = tuple(str(options.data / "pairs" / f"{source}.parquet") for source in FIVE)
    known = options.data.is_dir()
    config = PreferenceConfig(
        pairs=pairs if known else (),
        planted=None if known else SyntheticConfig(num_prompts=150),
        max_pairs_per_source=100,
        backbone=TrainedBackboneConfig(
            trained=Full(),
            depth=options.depth,
            dtype="float32",
            rendering=Rendering(max_prompt_tokens=128, max_response_tokens=96),
        ),
        weighting=Balanced(),
        schedule=ScheduleConfig(
            pairs_per_step=options.pairs_per_step, num_epochs=10, token_budget=token_budget
        ),
    )
    more = replace(config, weighting=More())
    with tempfile.TemporaryDirectory() as scratch:
        found = read_pairs(config, Path(scratch))
        path = Path(scratch) / "tokens.parquet"
        tokens, _ = tokenize(config, found, path, RunLogger())
        rows, _, _ = training_rows(config, found, tokens)
        plain, weighted = (
            RewardTrainer(TrainTask(c, rows, str(path), found.names, scratch, scratch), Group())
            for c in (config, more)
        )
        times: list[tuple[float, float]] = []
        for step in range(options.num_steps + 2):
            taken = dict[str, float]()
            turns = [("plain", plain), ("weighted", weighted)]
            for name, learner in turns if step % 2 else reversed(turns):
                began = time.perf_counter()
                learner.step(step)
                taken[name] = time.perf_counter() - began
            times.append((taken["plain"], taken["weighted"]))
        ratios = [b / a for a, b in times[2:]]
        return {
            "ratio": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "plain": statistics.median(a for a, _ in times[2:]),
            "weighted": statistics.median(b for _, b in times[2:]),
            "delayed": weighted.delayed,
        }


def setting(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import transformers

    return {
        "versions": {m.__name__: str(m.__version__) for m in (torch, transformers)},
        "dtype": "float32",
        "threads": options.threads,
        "cores": os.cpu_count(),
        "depth": options.depth,
        "pairs_per_step": options.pairs_per_step,
        "num_steps": options.num_steps,
    }


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.more"))
