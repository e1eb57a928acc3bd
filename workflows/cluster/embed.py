"""Embedding: canonical rows -> token trees -> actors of Ray Data or local processes -> shards.

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
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.embedder import DRIFT_PROMPTS, BackboneProfile, Embedder, profile_backbone
from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from panoply.data.tables import TextFiles
from panoply.files import reading, whole_file
from panoply.model.device import best_device
from panoply.report.progress import RunLogger
from workflows import starts_cluster
from workflows.cluster.local_pool import LocalPool, ProcessKilled
from workflows.cluster.ray_cluster import MAX_FAILURES, await_workers, connect, silence_ray

SHARD_PROMPTS = (16, 64)
"""Fewest and most prompts of a shard but the last."""
NUM_SHARDS = 32
"""Shards that a plan has where these bounds allow: with few, a worker waits for the last one."""
MAX_DRIVER_BYTES = 16 * 2**20
"""Bytes of files that the driver divides into shards sooner than a shuffle starts its processes."""
SHUFFLE_PARTS = 4
"""Parts of a shuffle, each gathered by a process of its own."""
NODE_LOST = (
    ProcessKilled,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    WorkerCrashedError,
    ExecutionTimeoutError,
)
"""Errors where Ray Data could not make up for a lost node itself, or a local process was killed."""
BUDGET = b"token_budget"
"""Key of the token budget in the metadata of a plan."""
COUNTS = ("texts", "prompts", "tokens", "separate_tokens", "prompts_cut", "responses_cut")
"""Counts of an embedding."""


@dataclass(frozen=True, slots=True)
class ActorPoolSpec:
    """The embedding actors: how many, and the CPUs and GPUs of each."""

    num_actors: int
    cpus: float
    gpus: float

    @classmethod
    def of_cluster(cls, num_workers: int, gpus: float | None = None) -> ActorPoolSpec:
        """Returns one actor per worker, each with a GPU if `gpus` is None and there are enough."""
        num = max(1, num_workers)
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) >= num)
        return cls(num, 1.0, gpus)

    def map(self, actor: type, args: tuple[Any, ...], shards: ray.data.Dataset) -> ray.data.Dataset:
        """Returns the results of `actor(*args)` on each shard, as they come."""
        return shards.map_batches(
            actor,
            fn_constructor_args=args,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            compute=ActorPoolStrategy(size=self.num_actors),
        )

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one actor."""
        return {"CPU": self.cpus, "GPU": self.gpus}


Workers: TypeAlias = ActorPoolSpec | LocalPool


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
    actors = ActorPoolSpec.of_cluster(num_workers, gpus)
    if minutes:
        await_workers(actors.num_actors, actors.bundle, minutes, logger)
    yield actors


def shards_for(
    workers: Workers, texts: TextFiles, plan: pa.Table
) -> ray.data.Dataset | list[pa.Table]:
    """Returns the shards of a plan, see `shard_rows`, for any number of calls of `answers`."""
    if isinstance(workers, LocalPool):
        return list(shards_of_files(texts, plan))
    return shard_rows(texts, plan)


def answers(
    workers: Workers,
    actor: type,
    arguments: tuple[Any, ...],
    shards: ray.data.Dataset | list[pa.Table],
) -> Iterator[pa.Table]:
    """Yields the rows that `actor(*arguments)` returns for the shards, as they come."""
    if isinstance(workers, LocalPool):
        return workers.map_made(actor, arguments, cast(list[pa.Table], shards))
    rows = workers.map(actor, arguments, cast(ray.data.Dataset, shards))
    return cast(
        Iterator[pa.Table], iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
    )


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
        remote = ray.remote(profile_backbone)
        remote = remote.options(num_cpus=workers.cpus, num_gpus=workers.gpus)
        try:
            return cls(root, workers, ray.get(remote.remote(config, samples)), plans)
        except RayTaskError as error:
            raise error.cause from None

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


def shard_rows(texts: TextFiles, plan: pa.Table) -> ray.data.Dataset:
    """Returns one row per shard, whose `prompts` are what `Embedder` and `Scorer` take.

    Args:
        texts: canonical files.
        plan: `text_id` and `shard` of the texts that are taken.
    """
    inputs = _columns_by_files(texts)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    files = [file for names, _ in inputs for file in names]
    if sum(Path(file).stat().st_size for file in files) <= MAX_DRIVER_BYTES:
        return ray.data.from_arrow(list(shards_of_files(texts, plan)))
    context.default_hash_shuffle_parallelism = SHUFFLE_PARTS
    parts: list[ray.data.Dataset] = []
    for files, columns in inputs:
        if files:
            rows = ray.data.read_parquet(list(files), columns=_column_names(columns))
            parts.append(rows.map_batches(as_trees(columns), batch_format="pyarrow"))
    rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    data = rows.map_batches(_placed(plan), batch_format="pyarrow")
    joined = data.groupby("shard").map_groups(one_shard, batch_format="pyarrow")
    # Blocks of one shard each: counts arrive, and are lost, shard by shard. All of this ends
    # before the actors take the CPUs: on a full cluster it would wait for them for ever.
    return joined.repartition(target_num_rows_per_block=1).materialize()


def shards_of_files(texts: TextFiles, plan: pa.Table) -> Iterator[pa.Table]:
    """Yields what `shard_rows` returns, of files that are read in this process."""
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
                for rows in answers(job.workers, Embedder, arguments, shards):
                    for row in rows.to_pylist():
                        for name in counts:
                            counts[name] += row[name]
                        advance(row["texts"])
        except NODE_LOST:
            if not tries_left:
                raise
            logger.info("embedding: worker lost, resuming with the remaining shards")
    return store, counts
