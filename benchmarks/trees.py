"""Trees against separate sequences: `python -m benchmarks.trees --json FILE`.

Scoring pairs, scoring many samples of a prompt, and training against TRL's `RewardTrainer`, on the
same model, tokens, dtype and threads. Each figure is the median over repeats of the ratio of times,
measured in turns; beside it stands the ideal, the ratio of tokens.
"""

from __future__ import annotations

import json as jsonlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.tree_baselines import (
    SOURCES,
    Separate,
    made_up,
    one_by_one,
    padded_tokens,
    random_batches,
    read_pairs,
    separate,
    side_by_side,
    sorted_batches,
    where_time_goes,
)
from benchmarks.tree_training import compare_training
from panoply.hub.backbone import Backbone, load_backbone, quiet, resolve
from panoply.model.tree import TokenTree

Part = Literal["pairs", "samples", "growth", "training"]
AGAINST = ("sorted", "random", "one")


def figure(ours: Sequence[float], theirs: Sequence[float], **more: Any) -> dict[str, Any]:
    """Returns how many times faster `ours` is, per repeat, as median and extremes."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    found = {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found | {"seconds": statistics.median(ours)} | more


def load(model: str, dtype: Any, num_layers: int) -> tuple[Backbone, Separate]:
    """Returns the backbone with tree attention, and another copy of the model without."""
    ours = load_backbone(model, depths=[num_layers] if num_layers else None, dtype=dtype)
    assert ours.decoder.attends_by_trees, "this model takes no tree attention"
    return ours, Separate(resolve(model), ours.decoder.dtype, num_layers)


def compare(
    ours: Backbone, theirs: Separate, trees: Sequence[TokenTree], repeats: int
) -> dict[str, dict[str, Any]]:
    """Returns the figures of scoring `trees` against each way of batching separate sequences."""
    sequences = separate(trees)
    budget = theirs.best_budget(sequences)
    batches = {
        "sorted": sorted_batches(sequences, budget),
        "random": random_batches(sequences),
        "one": one_by_one(sequences),
    }
    ours.features(trees[:1])  # calibrates
    runs = [lambda: ours.features(trees), *(lambda b=b: theirs.run(b) for b in batches.values())]
    times = side_by_side(runs, repeats)
    computed = sum(tree.num_tokens for tree in trees)
    ideal = sum(map(len, sequences)) / computed
    return {
        name: figure(
            times[0],
            column,
            ideal=ideal,
            share_of_ideal=statistics.median(column) / statistics.median(times[0]) / ideal,
            padding=padded_tokens(batches[name]) / sum(map(len, sequences)) - 1,
            tokens_per_second=computed / statistics.median(times[0]),
            sorted_budget=budget,
            token_budget=ours.token_budget,
        )
        for name, column in zip(AGAINST, times[1:], strict=True)
    }


def growth(ours: Backbone, theirs: Separate, repeats: int) -> dict[str, dict[str, Any]]:
    """Returns how the figures change with prompt length, number of responses and row size."""
    found: dict[str, dict[str, Any]] = {}
    shapes = {f"prompt_{p}": (p, 4) for p in (64, 256, 1024)}
    shapes |= {f"responses_{n}": (256, n) for n in (1, 2, 4, 8, 16)}
    for name, (prompt, responses) in shapes.items():
        tree = made_up(prompt, responses, 64)
        found[name] = compare(ours, theirs, [tree], repeats)["sorted"]
    trees = [made_up(96, 2, 64, seed) for seed in range(16)]
    budgets = (256, 512, 1024, 2048, 4096)
    runs = [lambda b=b: ours.features(trees, b) for b in budgets]
    times = side_by_side(runs, repeats)
    for budget, column in zip(budgets, times, strict=True):
        found[f"row_{budget}"] = figure(column, times[1], tokens=budget)
    return found


def main(
    json: Path,
    data: Path = Path("../shared/data"),
    model: str = "embedded",
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    parts: tuple[Part, ...] = ("pairs", "samples", "growth", "training"),
    threads: int = 2,
    pairs: int = 64,
    train_pairs: int = 64,
    repeats: int = 3,
    num_layers: int = 0,
    profile: bool = False,
) -> None:
    """Runs the benchmark and prints a table.

    Args:
        json: where the figures go.
        data: folder with `pairs/*.parquet`.
        model: 'embedded', a folder or a hub name.
        dtypes: what is computed in.
        parts: what is measured.
        threads: threads of torch.
        pairs: pairs of each source that are scored.
        train_pairs: pairs of an epoch, a quarter of each source.
        repeats: times each run is measured.
        num_layers: cuts the model; 0 keeps all layers.
        profile: also tells where the time goes.
    """
    quiet()
    torch.set_num_threads(threads)
    console = Console()
    figures: dict[str, Any] = {}
    for dtype in dtypes:
        end = "" if dtype == "float32" else f"_{dtype}"
        ours, theirs = load(model, dtype, num_layers)
        sets: dict[str, list[TokenTree]] = {}
        if "pairs" in parts:
            for source in SOURCES:
                name = "pairs" if source == "hh_harmless" else f"pairs_{source}"
                sets[name] = read_pairs(data, source, ours.renderer, pairs)
        if "samples" in parts:
            sets["n16"] = [made_up(512, 16, 64)]
        for name, trees in sets.items():
            for against, found in compare(ours, theirs, trees, repeats).items():
                figures[f"{name}_vs_{against}{end}"] = found
                console.print(row_of(f"{name}_vs_{against}{end}", found))
            if profile:
                batches = sorted_batches(separate(trees), theirs.best_budget(separate(trees)))
                figures[f"{name}_profile{end}"] = {
                    "trees": where_time_goes(lambda t=trees: ours.features(t)),
                    "sorted": where_time_goes(lambda b=batches: theirs.run(b)),
                }
                console.print(figures[f"{name}_profile{end}"])
        if "growth" in parts:
            figures |= {f"{k}{end}": v for k, v in growth(ours, theirs, repeats).items()}
        if "training" in parts:
            several = [
                t for s in SOURCES for t in read_pairs(data, s, ours.renderer, train_pairs // 4)
            ]
            del ours, theirs
            found = compare_training(several, resolve(model), dtype, threads, num_layers, repeats)
            figures |= {f"{name}{end}": value for name, value in found.items()}
        json.write_text(jsonlib.dumps(figures, indent=1) + "\n")
    figures["setting"] = setting(model, dtypes, threads, pairs, train_pairs, repeats, num_layers)
    json.write_text(jsonlib.dumps(figures, indent=1) + "\n")
    show(console, figures)


def row_of(name: str, found: dict[str, Any]) -> str:
    """Returns a figure on one line, shown as soon as it is known."""
    return f"{name}: {found['ratio']:.2f} ({found['min']:.2f}-{found['max']:.2f})"


def setting(*values: Any) -> dict[str, Any]:
    """Returns versions and sizes."""
    import transformers
    import trl

    names = ("model", "dtypes", "threads", "pairs", "train_pairs", "repeats", "num_layers")
    versions = {m.__name__: str(m.__version__) for m in (torch, transformers, trl)}
    return dict(zip(names, values, strict=True)) | {"versions": versions}


def show(console: Console, figures: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table("figure", "ratio", "min", "max", "ideal", "of ideal", "tokens/s")
    for name, found in figures.items():
        if "ratio" in found:
            keys = ("ratio", "min", "max", "ideal", "share_of_ideal", "tokens_per_second")
            numbers = (f"{found[k]:.2f}" if k in found else "" for k in keys)
            table.add_row(name, *numbers)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.trees")
