"""Trees against separate sequences: `python -m benchmarks.trees --json FILE`.

Scoring pairs, scoring many samples of a prompt, and training against TRL's `RewardTrainer`, on the
same model, tokens, dtype and threads. Each figure is the median over repeats of the ratio of times,
measured in turns; beside it stands the ideal, the ratio of tokens. Our side is as the product runs
it, with prepacked linear layers: `..._vs_unpacked` tells what these are worth, and
`unpacked_share_of_ideal` what trees alone reach of their ideal.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, settings_of, write_figures
from benchmarks.tree_baselines import (
    SOURCES,
    Clock,
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
from panoply.hub.backbone.backbone import Backbone, load_backbone
from panoply.hub.backbone.pretrained import resolve, silence_libraries
from panoply.hub.backbone.renderer import Renderer
from panoply.model.tree import TokenTree

Part = Literal["pairs", "samples", "growth", "training"]
AGAINST = ("sorted", "random", "one")
SHOWN = ("ratio", "min", "max", "ideal", "share_of_ideal", "unpacked_share_of_ideal", "ratios")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet`."""
    model: str = "embedded"
    """'embedded', a folder or a hub name."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """What is computed in."""
    parts: tuple[Part, ...] = ("pairs", "samples", "growth", "training")
    """What is measured."""
    threads: int = 2
    """Threads of torch."""
    pairs: int = 64
    """Pairs of each source that are scored."""
    train_pairs: int = 64
    """Pairs of an epoch, a quarter of each source."""
    repeats: int = 3
    """Times each run is measured."""
    num_layers: int = 0
    """Cuts the model; 0 keeps all layers."""
    clock: Clock = "wall"
    """'cpu' counts the process's own time: for a machine that others use, with one thread."""
    profile: bool = False
    """Also tells where the time goes."""


def figure(ours: Sequence[float], theirs: Sequence[float], **more: Any) -> dict[str, Any]:
    """Returns how many times faster `ours` is, per repeat, as median and extremes."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return over_repeats(ratios, seconds=statistics.median(ours), **more)


@dataclass(frozen=True, slots=True)
class Sides:
    """The same model three times."""

    ours: Backbone
    """By trees, with prepacked layers."""
    unpacked: Backbone
    """By trees, with the layers of transformers."""
    theirs: Separate
    """Of transformers."""

    @classmethod
    def load(cls, model: str, dtype: Any, num_layers: int) -> Sides:
        """Loads a model, cut to a number of layers; 0 keeps all."""
        depths = [num_layers] if num_layers else None
        ours = load_backbone(model, depths=depths, dtype=dtype)
        assert ours.decoder.attends_by_trees, "this model takes no tree attention"
        ours.prepack()
        unpacked = load_backbone(model, depths=depths, dtype=dtype)
        return cls(ours, unpacked, Separate(resolve(model), ours.decoder.dtype, num_layers))


def compare(
    sides: Sides, trees: Sequence[TokenTree], options: Options
) -> dict[str, dict[str, Any]]:
    """Returns the figures of scoring `trees` against each way of batching separate sequences."""
    ours, unpacked, theirs = sides.ours, sides.unpacked, sides.theirs
    sequences = separate(trees)
    budget = theirs.best_budget(sequences)
    batches = {
        "sorted": sorted_batches(sequences, budget),
        "random": random_batches(sequences),
        "one": one_by_one(sequences),
    }
    ours.features(trees[:1])  # calibrates
    budget_of_rows = ours.token_budget
    runs = [
        lambda: ours.features(trees),
        lambda: unpacked.features(trees, budget_of_rows),
        *(lambda b=b: theirs.run(b) for b in batches.values()),
    ]
    times = side_by_side(runs, options.repeats, options.clock)
    computed = sum(tree.num_tokens for tree in trees)
    ideal = sum(map(len, sequences)) / computed
    of_ours, of_unpacked = (statistics.median(column) for column in times[:2])
    figures = {
        name: figure(
            times[0],
            column,
            ideal=ideal,
            share_of_ideal=statistics.median(column) / of_ours / ideal,
            unpacked_share_of_ideal=statistics.median(column) / of_unpacked / ideal,
            padding=padded_tokens(batches[name]) / sum(map(len, sequences)) - 1,
            tokens_per_second=computed / of_ours,
            sorted_budget=budget,
            token_budget=budget_of_rows,
        )
        for name, column in zip(AGAINST, times[2:], strict=True)
    }
    return {**figures, "unpacked": figure(times[0], times[1])}


def growth(sides: Sides, options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields how the figures change with prompt length, number of responses and row size."""
    shapes = {f"prompt_{p}": (p, 4) for p in (64, 256, 1024)}
    shapes |= {f"responses_{n}": (256, n) for n in (1, 2, 4, 8, 16)}
    for name, (prompt, responses) in shapes.items():
        yield name, compare(sides, [made_up(prompt, responses, 64)], options)["sorted"]
    trees = [made_up(96, 2, 64, seed) for seed in range(16)]
    budgets = (256, 512, 1024, 2048, 4096)
    runs = [lambda b=b: sides.ours.features(trees, b) for b in budgets]
    times = side_by_side(runs, options.repeats, options.clock)
    for budget, column in zip(budgets, times, strict=True):
        yield f"row_{budget}", figure(column, times[1], tokens=budget)


def main(options: Options) -> None:
    """Runs the benchmark and prints a table."""
    silence_libraries()
    torch.set_num_threads(options.threads)
    console = Console()
    figures: dict[str, Any] = {"setting": about(options)}
    for dtype in options.dtypes:
        end = "" if dtype == "float32" else f"_{dtype}"
        for name, found in measure(options, dtype):
            figures[name + end] = found
            write_figures(options.json, figures)
            console.print(name + end, {k: v for k, v in found.items() if k in SHOWN})
    print_figures(figures, ("ratio", "min", "max", "ideal", "share_of_ideal", "tokens_per_second"))


def measure(options: Options, dtype: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the figures of one dtype."""
    sides = Sides.load(options.model, dtype, options.num_layers)
    renderer = sides.ours.renderer
    for name, trees in tree_sets(options, renderer):
        for against, found in compare(sides, trees, options).items():
            yield f"{name}_vs_{against}", found
        if options.profile:
            yield f"{name}_profile", explain(sides.ours, sides.theirs, trees)
    if "growth" in options.parts:
        yield from growth(sides, options)
    if "training" in options.parts:
        size = options.train_pairs // len(SOURCES)
        trees = [t for s in SOURCES for t in read_pairs(options.data, s, renderer, size)]
        yield from compare_training(
            trees,
            resolve(options.model),
            dtype,
            threads=options.threads,
            num_layers=options.num_layers,
            repeats=options.repeats,
            clock=options.clock,
        )


def tree_sets(options: Options, renderer: Renderer) -> Iterator[tuple[str, list[TokenTree]]]:
    """Yields what is scored."""
    if "pairs" in options.parts:
        for source in SOURCES:
            name = "pairs" if source == "hh_harmless" else f"pairs_{source}"
            yield name, read_pairs(options.data, source, renderer, options.pairs)
    if "samples" in options.parts:
        yield "n16", [made_up(512, 16, 64)]


def explain(ours: Backbone, theirs: Separate, trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Returns where the time goes, and how many times less of each kind trees need."""
    sequences = separate(trees)
    batches = sorted_batches(sequences, theirs.best_budget(sequences))
    a, b = (
        where_time_goes(lambda: ours.features(trees)),
        where_time_goes(lambda: theirs.run(batches)),
    )
    return {"trees_ms": a, "sorted_ms": b, "ratios": {name: b[name] / a[name] for name in a}}


def about(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import transformers
    import trl

    return setting(torch, transformers, trl, **settings_of(options))


if __name__ == "__main__":
    run(main, Options)
