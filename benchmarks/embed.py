"""Embedding rated texts, and how a run's cost grows: `python -m benchmarks.embed --json FILE`.

`embed_vs_single`, `embed_vs_sorted`: one worker's forward over prompts with all their responses,
against one text at a time and against length-sorted token-budget batches of separate texts. Beside
each stands the ideal, the ratio of tokens.
`*_two_workers_vs_one`: the steps of a run on Ray, or by local processes, with one worker and two,
and with one and three times the rows. Starting workers costs seconds whatever the rows, so what is
compared is the cost of more rows: from the difference of the two sizes.
`stored_blocks`: stage 1 of many planted rows by two workers, whose features lie on disk: the most
space that sums took beside the running ones, in blocks; and the largest error of an objective's
weights beside the planted ones, over their length.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures
from benchmarks.tree_baselines import (
    Separate,
    one_by_one,
    separate,
    side_by_side,
    sorted_batches,
)
from panoply.config import BackboneConfig
from panoply.config.armorm import ArmoRMConfig, ObjectivesConfig

if TYPE_CHECKING:
    from workflows.cluster.embed import Workers

TIMES = 3
"""How many times the rows of the smaller size the larger one has."""
Part = Literal["forwards", "embedding", "local", "sums", "stored"]
WATCH_SECONDS = 0.05
"""Pause between two looks at the folder of sums."""
PAIRS = 60
"""Pairs beside the ratings, of either size: enough for every part of the split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    data: Path = Path("../shared/data")
    """Folder with `ratings/*.parquet` and `pairs/*.parquet`."""
    parts: tuple[Part, ...] = ("forwards", "embedding", "sums")
    """Figures of one worker's forward, and of the two steps on Ray; `local`: of the first of them
    by local processes."""
    depth: float = 0.6
    """Share of the layers."""
    prompts: int = 96
    """Prompts that are embedded side by side."""
    repeats: int = 3
    """Times each way is measured."""
    ratings_per_source: int = 30
    """Ratings of each source, of the smaller size of the whole step."""
    sum_rows: int = 40_000
    """Rows of stage 1, of the smaller size."""
    stored_rows: int = 1_000_000
    """Rows of the stage 1 whose space is measured; each takes 2.3 KB."""


def main(options: Options) -> None:
    """Runs the benchmark and prints a table."""
    from panoply.hub.backbone.pretrained import silence_libraries

    silence_libraries()
    figures: dict[str, Any] = {"setting": about(options)}
    measures = {
        "forwards": forwards,
        "embedding": embedding_on_ray,
        "local": embedding_locally,
        "sums": sums_on_ray,
        "stored": stored_sums,
    }
    for part in options.parts:
        figures |= measures[part](options)
        write_figures(options.json, figures)
    print_figures(figures, ("ratio", "min", "max", "ideal", "unit_cost"))
    if "stored" in options.parts:
        print_figures(figures, ("value", "blocks"))


def forwards(options: Options) -> dict[str, Any]:
    """Returns the figures of one worker's forward."""
    import json

    from panoply.hub.backbone.backbone import load_backbone
    from panoply.hub.backbone.pretrained import resolve

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows = sample(options, Path(scratch))
    probe = load_backbone("embedded")
    num_layers = max(1, round(options.depth * len(probe.decoder.layers)))
    ours = load_backbone("embedded", depths=[num_layers], dtype="float32")
    trees = [ours.renderer.render(json.loads(r["prompt"]), r["responses"]).tree for r in rows]
    theirs = Separate(resolve("embedded"), ours.decoder.dtype, num_layers)
    sequences = separate(trees)
    budget = theirs.best_budget(sequences)
    batches = {"sorted": sorted_batches(sequences, budget), "single": one_by_one(sequences)}
    ours.features(trees[:1])  # calibrates
    runs = [lambda: ours.features(trees), *(lambda b=b: theirs.run(b) for b in batches.values())]
    mine, *others = side_by_side(runs, options.repeats, "wall")
    computed = sum(tree.num_tokens for tree in trees)
    rate = computed / statistics.median(mine)
    return {
        f"embed_vs_{name}": over_repeats([b / a for a, b in zip(mine, column, strict=True)])
        | {"ideal": sum(map(len, sequences)) / computed, "unit_cost": f"{rate:.0f} tokens/s"}
        for name, column in zip(batches, others, strict=True)
    }


def sample(options: Options, folder: Path) -> list[Any]:
    """Returns prompts with their responses, drawn over all rating and pair sources."""
    from panoply.armorm.training_data import read_training_data
    from workflows.cluster.embed import into_shards, shards_of_files, wanted_texts

    texts = read_training_data(config_of(options, options.ratings_per_source), folder).texts
    shards = shards_of_files(texts, into_shards(wanted_texts(texts)))
    rows = [prompt for shard in shards for prompt in shard["prompts"][0].as_py()]
    order = np.random.default_rng(0).permutation(len(rows))[: options.prompts]
    return [rows[i] for i in order]


def config_of(options: Options, rows_per_source: int) -> ArmoRMConfig:
    """Returns a run on some rows of every rating source and of a pair source."""
    return ArmoRMConfig(
        ratings=tuple(map(str, sorted((options.data / "ratings").glob("*.parquet")))),
        pairs=(str(options.data / "pairs" / "hh_harmless.parquet"),),
        max_ratings_per_source=rows_per_source,
        max_pairs_per_source=PAIRS,
        backbone=BackboneConfig(depths=(options.depth,), dtype="float32"),
        objectives=ObjectivesConfig(min_ratings=2),
    )


def embedding_on_ray(options: Options) -> dict[str, Any]:
    """Returns how embedding by actors grows with workers and rows."""
    from panoply.report.progress import RunLogger
    from workflows.cluster.actor_pool import ActorPool
    from workflows.cluster.ray_cluster import connect

    connect(2)
    logger = RunLogger()
    return embedding(options, "embedding", lambda num: ActorPool(num, {"CPU": 1}, logger))


def embedding_locally(options: Options) -> dict[str, Any]:
    """Returns how embedding by local processes grows with processes and rows."""
    from workflows.cluster.local_pool import LocalPool

    return embedding(options, "local_embedding", LocalPool)


def embedding(
    options: Options, name: str, workers_of: Callable[[int], AbstractContextManager[Workers]]
) -> dict[str, Any]:
    """Returns how the step grows with as many workers as are asked for, and with rows."""
    from panoply.armorm.training_data import read_training_data
    from panoply.report.progress import RunLogger
    from workflows.cluster.embed import EmbeddingJob, embed

    def run(rows: int, num_workers: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as scratch, workers_of(num_workers) as workers:
            config = config_of(options, rows)
            texts = read_training_data(config, Path(scratch)).texts
            source = EmbeddingJob.open(config.backbone, scratch, workers, texts, Path(scratch))
            start = time.perf_counter()
            _, counts = embed(texts, source, source.profile.depths, RunLogger())
            return time.perf_counter() - start, counts["tokens"]

    return grown(name, run, options.ratings_per_source, "tokens/s", 1.0)


def sums_on_ray(options: Options) -> dict[str, Any]:
    """Returns how the sums of stage 1 grow with workers and rows."""
    from actors.fitters import write_sums
    from panoply.armorm.blocks import BlockSums, plan_blocks
    from panoply.data.features import FeatureStore
    from workflows.cluster.ray_cluster import connect
    from workflows.cluster.train import run_train

    connect(2)
    rng = np.random.default_rng(0)

    def run(rows: int, workers: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as scratch:
            store, names = FeatureStore(f"{scratch}/store", {}), [f"t{i}" for i in range(rows)]
            for first in range(0, rows, 2000):
                part = names[first : first + 2000]
                x = rng.standard_normal((len(part), 576), np.float32)
                store.write("texts", part, {"mean_18": x})
            labels = np.full((rows, 19), np.nan)
            for i in range(19):  # each objective is rated by one of 8 sources
                labels[i % 8 :: 8, i] = rng.standard_normal(len(labels[i % 8 :: 8]))
            features = store.features("texts", names, ("mean_18",))
            blocks = plan_blocks(labels, np.arange(rows) % 5, features, 8192)
            sums = {"sums": [BlockSums(blocks, f"{scratch}/sums")], "num_cpus": 1}
            start = time.perf_counter()
            run_train(write_sums, sums, workers, Path(scratch) / "train", "sums")
            return time.perf_counter() - start, rows / 1e6

    return grown("sums", run, options.sum_rows, "s per million rows", -1.0)


def stored_sums(options: Options) -> dict[str, Any]:
    """Returns the space that the sums of many rows take, and how well planted weights come out."""
    from actors.fitters import write_sums
    from panoply.armorm.blocks import BlockSums, plan_blocks
    from panoply.armorm.out_of_fold import SELECT
    from panoply.data.features import FeatureStore
    from workflows.cluster.ray_cluster import connect
    from workflows.cluster.train import run_train

    connect(2)
    config, rng = ObjectivesConfig(), np.random.default_rng(0)
    rows, num_objectives, num_sources, size = options.stored_rows, 19, 8, 576
    weights_OD = rng.standard_normal((num_objectives, size)) / np.sqrt(size)
    with tempfile.TemporaryDirectory() as scratch:
        store, names = FeatureStore(f"{scratch}/store", {}), [f"t{i}" for i in range(rows)]
        labels_NO = np.full((rows, num_objectives), np.nan)
        for first in range(0, rows, 2000):
            part = slice(first, min(rows, first + 2000))
            x_ND = rng.standard_normal((part.stop - first, size), np.float32)
            store.write("texts", names[part], {"mean_18": x_ND})
            noise_NO = rng.standard_normal((len(x_ND), num_objectives))
            labels_NO[part] = x_ND @ weights_OD.T + noise_NO
        for i in range(num_objectives):  # each objective is rated by one of the sources
            labels_NO[np.arange(rows) % num_sources != i % num_sources, i] = np.nan
        fold_N = np.arange(rows) // num_sources % (config.num_folds + 1) + SELECT

        features = store.features("texts", names, ("mean_18",))
        sums = BlockSums(
            plan_blocks(labels_NO, fold_N, features, config.block_rows), f"{scratch}/sums"
        )
        ended, beside = threading.Event(), list[int]()
        chains = {chain.name for chain in sums.chains()}
        watch = threading.Thread(
            target=watch_folder, args=(Path(sums.folder), chains, ended, beside)
        )
        watch.start()
        start = time.perf_counter()
        run_train(write_sums, {"sums": [sums], "num_cpus": 1}, 2, Path(scratch) / "train", "sums")
        summed = time.perf_counter() - start
        ended.set()
        watch.join()
        block = max(file.stat().st_size for file in Path(sums.folder).glob("*.npz"))
        start = time.perf_counter()
        fitted_OD = sums.solve(num_objectives, config).full.weights
        solved = time.perf_counter() - start
    errors_O = np.linalg.norm(fitted_OD - weights_OD, axis=1) / np.linalg.norm(weights_OD, axis=1)
    return {
        "stored_blocks": {"value": max(beside) / block, "blocks": len(sums.blocks)},
        "stored_error": {"value": float(errors_O.max())},
        "stored_seconds": {"sums": summed, "solve": solved},
    }


def watch_folder(folder: Path, chains: set[str], ended: threading.Event, beside: list[int]) -> None:
    """Notes until the end how many bytes of a folder are no running sum, the newest of its chain.

    Args:
        folder: of the sums.
        chains: names of the running sums.
        ended: set when nothing is written any more.
        beside: gets the bytes of each look.
    """
    while not ended.wait(WATCH_SECONDS):
        sizes: dict[str, list[int]] = {}
        for file in folder.iterdir() if folder.exists() else ():
            with suppress(FileNotFoundError):  # removed meanwhile
                name = file.name.partition("-")[0]
                sizes.setdefault(name, []).append(file.stat().st_size)
        total = sum(sum(of_name) for of_name in sizes.values())
        running = sum(max(of_name) for name, of_name in sizes.items() if name in chains)
        beside.append(total - running)


def grown(name: str, run: Any, rows: int, unit: str, power: float) -> dict[str, Any]:
    """Returns the cost of more rows with two workers against one, and of rows against fewer.

    Args:
        name: of the step.
        run: takes rows and workers; returns seconds and how much was done.
        rows: of the smaller size.
        unit: of the cost.
        power: 1 for a speed, -1 for a time.
    """
    run(rows, 1)  # warm: imports, and the files of the model
    small, large = ({w: run(n, w) for w in (1, 2)} for n in (rows, TIMES * rows))
    speed = {w: (large[w][1] - small[w][1]) / max(1e-9, large[w][0] - small[w][0]) for w in (1, 2)}
    seconds = {
        f"{n}_rows_{w}_workers": found[w][0]
        for n, found in ((rows, small), (TIMES * rows, large))
        for w in (1, 2)
    }
    ratio = speed[2] / speed[1]
    cost = f"{speed[1] ** power:.3g} {unit} of a worker"
    return {
        f"{name}_two_workers_vs_one": cast(
            dict[str, Any],
            {
                "ratio": ratio,
                "min": ratio,
                "max": ratio,
                "ideal": 2.0,
                "unit_cost": cost,
                "seconds": seconds,
            },
        )
    }


def about(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import ray
    import transformers

    return setting(
        *(torch, transformers, ray),
        threads=1,
        dtype="float32",
        depth=options.depth,
        prompts=options.prompts,
        ratings_per_source=options.ratings_per_source,
        sum_rows=options.sum_rows,
        stored_rows=options.stored_rows,
    )


if __name__ == "__main__":
    run(main, Options)
