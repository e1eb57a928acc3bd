"""ArmoRM on real ratings and pairs: `python -m evidence.real --data DIR --json FILE`.

All rating files of DIR/ratings and the gate's pair sources of DIR/pairs, on several seeds, each
moving split and initialization; once with rated objectives alone and once with one preference
objective per source beside them. The depth is fixed at 0.6 of the layers, so that features are
embedded once for all runs; the pooling is chosen on *select*. The gate without each source in turn
is trained on the first seed.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import over_seeds, run, setting, write_figures
from panoply.config import BackboneConfig
from panoply.config.armorm import ArmoRMConfig

PAIRS = (
    "hh_helpful",
    "hh_harmless",
    "alpacaeval_gpt4",
    "ukp_convarg",
    "truthfulqa",
    "xstest",
    "gsm8k_solutions",
    "rmb_helpful",
)
SETTINGS = {"rated": False, "rated + preferences": True}
BALANCED = "accuracy_length_balanced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    data: Path
    """Folder with `ratings/` and `pairs/`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Two runs per seed."""
    max_pairs_per_source: int = 1000
    """Most pairs taken of one source."""
    num_workers: int = 2
    """Embedding actors and Ray Train workers."""
    store: str = ""
    """Root of a feature cache that outlives the runs; empty: none does."""


def main(options: Options) -> None:
    """Runs the experiment and prints tables."""
    from rich.console import Console

    from panoply.report.progress import RunLogger
    from workflows.armorm import run_armorm

    console = Console(log_path=False)
    base = replace(
        ArmoRMConfig(
            ratings=tuple(map(str, sorted((options.data / "ratings").glob("*.parquet")))),
            pairs=tuple(str(options.data / "pairs" / f"{name}.parquet") for name in PAIRS),
            backbone=BackboneConfig(depths=(0.6,)),
        ),
        max_pairs_per_source=options.max_pairs_per_source,
        num_workers=options.num_workers,
    )
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for number, (name, preferences) in enumerate(SETTINGS.items()):
                start = time.perf_counter()
                config = replace(
                    base,
                    seed=seed,
                    preference_objectives=preferences,
                    leave_one_out=seed == options.seeds[0],
                    out=f"{scratch}/{number}-{seed}",
                    store=options.store or f"{scratch}/store",
                )
                metrics = run_armorm(config, RunLogger(console))
                runs[name].append(metrics | {"seconds": time.perf_counter() - start})
                print_tables(runs, console)
                write_figures(options.json, figures(runs))
    console.print(f"written to {options.json}")


def figures(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the benchmark's figures: means over seeds, and each seed's metrics whole."""
    import ray
    import torch
    import transformers

    found: dict[str, Any] = {}
    for name, each in runs.items():
        for scorer in each[0]["pairs"] if each else ():
            for key in (BALANCED, "accuracy"):
                values = [metrics["pairs"][scorer]["macro"][key] for metrics in each]
                found[f"{name}/{scorer}/{key}"] = over_seeds(values)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found["setting"] = setting(ray, torch, transformers, threads=1, driver_peak_gib=peak)
    return found | {"runs": {name: list(each) for name, each in runs.items()}}


def print_tables(runs: Mapping[str, Sequence[Mapping[str, Any]]], console: Any) -> None:
    """Prints scorers by setting, and the gate by source."""
    from rich.table import Table

    table = Table("scorer", *(f"{name}: balanced (accuracy)" for name in runs if runs[name]))
    done = {name: each for name, each in runs.items() if each}
    for scorer in next(iter(done.values()))[0]["pairs"]:
        cells: list[str] = []
        for each in done.values():
            a, b = (
                over_seeds([metrics["pairs"][scorer]["macro"][key] for metrics in each])
                for key in (BALANCED, "accuracy")
            )
            cells.append(f"{a['ratio']:.3f} [{a['min']:.3f}, {a['max']:.3f}] ({b['ratio']:.3f})")
        table.add_row(scorer, *cells)
    console.print(table)
    for name, each in done.items():
        table = Table(f"{name}, by source", "gate", "gate, source mean", "best fixed", "per source")
        for source in each[0]["pairs"]["gate"]["per_source"]:
            scorers = ("gate", "gate_source_mean", "best_fixed", "best_fixed_per_source")
            means = (
                over_seeds([m["pairs"][s]["per_source"][source][BALANCED] for m in each])["ratio"]
                for s in scorers
            )
            table.add_row(source, *(f"{x:.3f}" for x in means))
        console.print(table)
        console.print(f"{name}: seconds {[round(m['seconds']) for m in each]}")


if __name__ == "__main__":
    run(main, Options)
