"""Embedding: canonical rows -> token trees -> actors of a cluster or local processes -> shards.

Every prompt meets all its responses, from ratings and pairs alike, in one tree. Only what no
shard holds is embedded, so a rerun or a crash pays for what is missing. Sums of floats depend in
their last bits on what is computed side by side, so that is planned before the first forward and
kept: a run that lost nodes, or was killed and started again, gets the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import ObjectLostError
from ray.types import ObjectRef

from actors.embedder import DRIFT_PROMPTS, BackboneProfile, Embedder, profile_backbone
from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from panoply.data.tables import TextFiles
from panoply.files import reading, whole_file
from panoply.model.device import best_device
from panoply.report.progress import RunLogger
from workflows import starts_cluster
from workflows.cluster.actor_pool import ActorPool
from workflows.cluster.local_pool import SLOW_IMPORTS, LocalPool, ProcessKilled
from workflows.cluster.ray_cluster import (
    MAX_FAILURES,
    await_workers,
    bundle_of_worker,
    connect,
    silence_ray,
)

SHARD_PROMPTS = (16, 64)
"""Fewest and most prompts of a shard but the last."""
NUM_SHARDS = 32
"""Shards that a plan has where these bounds allow: with few, a worker waits for the last one."""
MAX_DRIVER_BYTES = 16 * 2**20
"""Bytes of files that the driver divides into shards sooner than a shuffle starts its processes."""
SHUFFLE_PARTS = 4
"""Parts of a shuffle, each gathered by a process of its own."""
BUDGET = b"token_budget"
"""Key of the token budget in the metadata of a plan."""
RESUMED = (ProcessKilled, ObjectLostError, ExecutionTimeoutError)
"""Errors after which a run goes on with the shards that are left."""
COUNTS = ("texts", "prompts", "tokens", "separate_tokens", "prompts_cut", "responses_cut")
"""Counts of an embedding."""


Workers: TypeAlias = ActorPool | LocalPool


@contextmanager
def open_workers(
    num_workers: int, logger: RunLogger, gpus: float | None = None, minutes: float = 0.0
) -> Generator[Workers]:
    """Yields what computes with a model for a run: local processes, or actors of a cluster.

    The same numbers come out, to the bit. A run is local where it has no cluster to join, and no
    GPU is there or asked for.

    Args:
        num_workers: most processes or actors.
        logger: receives what nodes lack.
        gpus: GPUs of each; None: one where there is any.
        minutes: longest wait for the nodes of a cluster; 0: until an actor finds room.

    Raises:
        TimeoutError: no node has room for a worker.
    """
    if starts_cluster() and not ray.is_initialized() and not gpus and best_device().type == "cpu":
        silence_ray()  # its loops run in this process
        with LocalPool(max(1, num_workers)) as processes:
            yield processes
        return
    connect(num_workers)
    bundle = bundle_of_worker(num_workers, gpus)
    if minutes:
        await_workers(max(1, num_workers), bundle, minutes, logger)
    with ActorPool(max(1, num_workers), bundle, logger, SLOW_IMPORTS) as actors:
        yield actors


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """A backbone, the workers that run it, and the cache of its features."""

    root: str
    workers: Workers
    profile: BackboneProfile
    plans: Path
    """Folder in which the run keeps what is embedded side by side."""

    @classmethod
    def open(
        cls,
        config: BackboneConfig,
        root: str,
        workers: Workers,
        texts: TextFiles,
        plans: Path,
    ) -> EmbeddingJob:
        """Measures the backbone on a worker: the driver may lack the workers' hardware.

        Where all are on this machine, the driver measures it, while the workers still start.

        Args:
            config: the backbone.
            root: cache of features.
            workers: what computes them.
            texts: canonical files.
            plans: folder in which the run keeps what is embedded side by side.

        Raises:
            ValueError, OSError: the backbone cannot be used.
        """
        samples = first_prompts(texts, DRIFT_PROMPTS)
        if isinstance(workers, LocalPool):
            return cls(root, workers, profile_backbone(config, samples), plans)
        [profile] = workers.map(partial(profile_backbone, config), [samples])
        return cls(root, workers, profile, plans)

    def store(self, depths: tuple[int, ...]) -> FeatureStore:
        """Returns the cache of features at these depths."""
        return FeatureStore(self.root, {**self.profile.key, "depths": list(depths)})


def as_trees(columns: Sequence[tuple[str, str]]) -> Callable[[pa.Table], pa.Table]:
    """Returns a map from canonical rows to (prompt_id, prompt, text_id, response) rows."""

    def explode(table: pa.Table) -> pa.Table:
        prompts = pa.array([json.dumps(prompt) for prompt in table["prompt"].to_pylist()])
        names = ("prompt_id", "prompt", "text_id", "response")
        return pa.concat_tables(
            pa.table([table["prompt_id"], prompts, table[ids], table[texts]], names=names)
            for ids, texts in columns
        )

    return explode


def one_shard(rows: pa.Table) -> pa.Table:
    """Joins all rows of one shard, in the order of their ids, each text once."""
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows.sort_by([("prompt_id", "ascending"), ("text_id", "ascending")]).to_pylist():
        empty: dict[str, Any] = {"prompt_id": row["prompt_id"], "prompt": row["prompt"]}
        empty |= {"text_ids": [], "responses": []}
        prompt = prompts.setdefault(row["prompt_id"], empty)
        if row["text_id"] not in prompt["text_ids"][-1:]:
            prompt["text_ids"].append(row["text_id"])
            prompt["responses"].append(row["response"])
    return pa.table({"prompts": [list(prompts.values())]})


def wanted_texts(texts: TextFiles, prompts: frozenset[str] | None = None) -> pa.Table:
    """Returns `prompt_id` and `text_id` of the files' texts, each once, sorted.

    Args:
        texts: canonical files.
        prompts: only the responses to these.
    """
    parts: list[pa.Table] = []
    for files, columns in (
        (texts.ratings, ("text_id",)),
        (texts.pairs, ("chosen_id", "rejected_id")),
    ):
        for file in files:
            table = pq.read_table(file, columns=["prompt_id", *columns])
            names = ("prompt_id", "text_id")
            parts += [pa.table([table["prompt_id"], table[c]], names=names) for c in columns]
    rows = pa.concat_tables(parts)
    if prompts is not None:
        rows = rows.filter(is_in(rows["prompt_id"], sorted(prompts)))
    both = rows.group_by(["prompt_id", "text_id"]).aggregate([])
    return both.sort_by([("prompt_id", "ascending"), ("text_id", "ascending")])


def is_in(column: pa.ChunkedArray, values: Sequence[str]) -> pa.ChunkedArray:
    """Returns which entries of a column are among `values`."""
    return pc.is_in(column, pa.array(values, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]


def into_shards(rows: pa.Table, first: int = 0) -> pa.Table:
    """Adds `shard` to rows sorted by prompt: one number for every 16 to 64 prompts."""
    names, prompt_N = np.unique(rows["prompt_id"].to_numpy(), return_inverse=True)
    num_prompts = int(np.clip(len(names) // NUM_SHARDS, *SHARD_PROMPTS))
    return rows.append_column("shard", pa.array(first + prompt_N // num_prompts, pa.int64()))


def first_prompts(texts: TextFiles, num: int) -> list[Mapping[str, Any]]:
    """Returns the first rows of the files as `prompt` (JSON) and `responses`."""
    rows: list[Mapping[str, Any]] = []
    for files, columns in ((texts.ratings, ("response",)), (texts.pairs, ("chosen", "rejected"))):
        for file in files:
            with pq.ParquetFile(file) as opened:
                batch = next(opened.iter_batches(num, columns=["prompt", *columns]))
            for row in batch.to_pylist():
                responses = list(dict.fromkeys(row[name] for name in columns))
                rows.append({"prompt": json.dumps(row["prompt"]), "responses": responses})
    return rows[-num:]


def shards_for(
    workers: Workers, texts: TextFiles, plan: pa.Table
) -> Sequence[pa.Table | ObjectRef[pa.Table]]:
    """Returns tables of a shard each, or references to them, for any number of calls of `map_made`.

    A shard is one row, whose `prompts` are what `Embedder` and `ScoringActor` take.

    Args:
        workers: what takes the shards.
        texts: canonical files.
        plan: `text_id` and `shard` of the texts that are taken.
    """
    files = (*texts.ratings, *texts.pairs)
    num_bytes = sum(Path(file).stat().st_size for file in files)
    if isinstance(workers, LocalPool) or num_bytes <= MAX_DRIVER_BYTES:
        return list(shards_of_files(texts, plan))
    workers.free()  # on a full cluster a shuffle would wait for their CPUs for ever
    return shuffled_shards(texts, plan)


def shuffled_shards(texts: TextFiles, plan: pa.Table) -> Sequence[ObjectRef[pa.Table]]:
    """Returns references to what `shards_of_files` yields, of files that nodes read and shuffle."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.default_hash_shuffle_parallelism = SHUFFLE_PARTS
    parts: list[ray.data.Dataset] = []
    for files, columns in _columns_by_files(texts):
        if files:
            rows = ray.data.read_parquet(list(files), columns=_column_names(columns))
            parts.append(rows.map_batches(as_trees(columns), batch_format="pyarrow"))
    rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    data = rows.map_batches(_placed(plan), batch_format="pyarrow")
    joined = data.groupby("shard").map_groups(one_shard, batch_format="pyarrow")
    # Blocks of one shard each: counts arrive, and are lost, shard by shard.
    return joined.repartition(target_num_rows_per_block=1).to_arrow_refs()


def shards_of_files(texts: TextFiles, plan: pa.Table) -> Iterator[pa.Table]:
    """Yields the shards of a plan, a table each, of files that are read in this process."""
    place = _placed(plan)
    parts = [
        place(as_trees(columns)(pq.read_table(file, columns=_column_names(columns))))
        for files, columns in _columns_by_files(texts)
        for file in files
    ]
    rows = pa.concat_tables(parts).sort_by("shard")
    _, start_S = np.unique(rows["shard"].to_numpy(), return_index=True)
    for start, stop in pairwise([*start_S, rows.num_rows]):
        yield one_shard(rows.slice(start, stop - start))


def _columns_by_files(texts: TextFiles) -> list[tuple[Sequence[str], list[tuple[str, str]]]]:
    """Returns the canonical files with their columns of ids and texts."""
    return [
        (texts.ratings, [("text_id", "response")]),
        (texts.pairs, [("chosen_id", "chosen"), ("rejected_id", "rejected")]),
    ]


def _placed(plan: pa.Table) -> Callable[[pa.Table], pa.Table]:
    """Returns a map that adds `shard` to the rows of a plan's texts, and drops all others."""
    ids, shards = plan["text_id"].combine_chunks(), plan["shard"].combine_chunks()

    def place(table: pa.Table) -> pa.Table:
        at = pc.index_in(table["text_id"], ids)  # pyright: ignore[reportAttributeAccessIssue]
        placed = table.append_column("shard", shards.take(at.combine_chunks()))
        return placed.filter(pc.is_valid(placed["shard"]))  # pyright: ignore[reportAttributeAccessIssue]

    return place


def _column_names(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the columns of a canonical file that hold its prompts and these ids and texts."""
    return ["prompt_id", "prompt", *chain.from_iterable(columns)]


def plan_shards(texts: pa.Table, store: FeatureStore, file: Path, token_budget: int) -> pa.Table:
    """Returns the plan of a run, with the token budget in its metadata; keeps it in `file`.

    Args:
        texts: those of the run, see `wanted_texts`.
        store: the cache; what it holds is not planned.
        file: where the plan is, if the run began before; what it holds stays as it is.
        token_budget: that of a new plan.
    """
    first, planned, earlier = 0, list[str](), list[pa.Table]()
    if file.exists():
        # A run that goes on computes side by side what its first attempt would have.
        with reading(file):
            plan = pq.read_table(file)
        earlier, planned = [plan], plan["text_id"].to_pylist()
        first = int(plan["shard"].to_numpy().max()) + 1
        token_budget = int(plan.schema.metadata[BUDGET])
    left = texts.filter(pc.invert(is_in(texts["text_id"], planned)))  # pyright: ignore[reportAttributeAccessIssue]
    left = left.filter(pa.array(store.find("texts", left["text_id"].to_pylist()).missing_N))
    if not left.num_rows and earlier:
        return earlier[0]
    plan = pa.concat_tables([*earlier, into_shards(left, first)])
    plan = plan.replace_schema_metadata({BUDGET: str(token_budget)})
    if plan.num_rows:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            pq.write_table(plan, partial)
    return plan


def pending(plan: pa.Table, store: FeatureStore) -> pa.Table:
    """Returns the shards of the plan that lack a text in the cache."""
    missing = store.find("texts", plan["text_id"].to_pylist()).missing_N
    shard = plan["shard"].to_numpy()
    return plan.filter(pa.array(np.isin(shard, shard[missing])))


def embed(
    texts: TextFiles,
    job: EmbeddingJob,
    depths: tuple[int, ...],
    logger: RunLogger,
    *,
    prompts: frozenset[str] | None = None,
) -> tuple[FeatureStore, dict[str, int]]:
    """Embeds what is missing and returns the store and the counts of this run.

    Args:
        texts: canonical files.
        job: backbone, workers and cache.
        depths: layers whose states are stored.
        logger: is shown the progress.
        prompts: embed only the responses to these prompts (to choose a layer on a sample).
    """
    store, config = job.store(depths), job.profile.config
    file = job.plans / f"{Path(store.path).name}.parquet"
    plan = plan_shards(wanted_texts(texts, prompts), store, file, config.token_budget)
    config = replace(config, token_budget=int(plan.schema.metadata[BUDGET]))
    arguments = (config, depths, store, 1)
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    for tries_left in reversed(range(MAX_FAILURES + 1)):
        left = pending(plan, store)
        if not left.num_rows:
            break
        try:
            with logger.bar("embedding texts", left.num_rows) as advance:
                shards = shards_for(job.workers, texts, left)
                for rows in job.workers.map_made(Embedder, arguments, shards):
                    for row in rows.to_pylist():
                        for name in counts:
                            counts[name] += row[name]
                        advance(row["texts"])
        except RESUMED:
            if not tries_left:
                raise
            logger.info("embedding: worker lost, resuming with the remaining shards")
    return store, counts
