"""Embedding on Ray Data: canonical rows -> token trees -> actor pool -> feature shards.

Every prompt meets all its responses, from ratings and pairs alike, in one tree. Only what no
shard holds is embedded, so a rerun or a crash pays for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

from actors.embedder import DRIFT_PROMPTS, Embedder, Probed, probe
from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from workflows.cluster import MAX_FAILURES
from workflows.progress import Watch

SHARD_PROMPTS = 64
LOST = (NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError, ExecutionTimeoutError)
"""What Ray Data raises where it could not make up for a lost node itself."""
COUNTS = ("texts", "prompts", "tokens", "separate_tokens", "prompts_cut", "responses_cut")
"""What is counted of an embedding."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is to be embedded: canonical Parquet files of ratings and of pairs."""

    ratings: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """The embedding actors: how many, and the CPUs and GPUs of each."""

    num_actors: int
    cpus: float
    gpus: float

    @classmethod
    def of_cluster(cls, num_workers: int, gpus: float | None = None) -> Pool:
        """One actor per worker; without a number, on a GPU where the cluster has one for each."""
        num = max(1, num_workers)
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) >= num)
        return cls(num, 1.0, gpus)

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one actor."""
        return {"CPU": self.cpus, "GPU": self.gpus}


@dataclass(frozen=True, slots=True)
class Source:
    """Where features come from, and the cache that they go to."""

    root: str
    pool: Pool
    probed: Probed

    @classmethod
    def open(cls, config: BackboneConfig, root: str, pool: Pool, texts: Texts) -> Source:
        """Probes the backbone on a worker: the driver may lack the workers' hardware."""
        remote = ray.remote(probe).options(num_cpus=pool.cpus, num_gpus=pool.gpus)
        samples = first_prompts(texts, DRIFT_PROMPTS)
        try:
            return cls(root, pool, ray.get(remote.remote(config, samples)))
        except RayTaskError as error:
            raise error.cause from None

    def store(self, depths: tuple[int, ...]) -> FeatureStore:
        """Returns the cache of features at these depths."""
        return FeatureStore(self.root, {**self.probed.key, "depths": list(depths)})


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


def one_prompt(rows: Any) -> dict[str, Any]:
    """Joins all rows of one prompt; a response that occurs twice is embedded once."""
    ids, first = np.unique(rows["text_id"], return_index=True)
    return {
        "prompt_id": [rows["prompt_id"][0]],
        "prompt": [rows["prompt"][0]],
        "text_ids": [list(ids)],
        "responses": [[rows["response"][i] for i in first]],
    }


def wanted_ids(texts: Texts, prompts: frozenset[str] | None = None) -> list[str]:
    """Returns the text ids of the files, each once, sorted; of some prompts only where given."""
    names: set[str] = set()
    for files, columns in (
        (texts.ratings, ("text_id",)),
        (texts.pairs, ("chosen_id", "rejected_id")),
    ):
        for file in files:
            table = pq.read_table(file, columns=["prompt_id", *columns])
            if prompts is not None:
                known = pa.array(sorted(prompts))
                table = table.filter(pc.is_in(table["prompt_id"], known))  # pyright: ignore[reportAttributeAccessIssue]
            for column in columns:
                names.update(table[column].to_pylist())
    return sorted(names)


def first_prompts(texts: Texts, num: int) -> list[Mapping[str, Any]]:
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


def prompt_trees(texts: Texts, wanted: frozenset[str]) -> ray.data.Dataset:
    """Returns one row per prompt: `prompt_id`, `prompt` (JSON), `text_ids`, `responses`.

    Args:
        texts: canonical files.
        wanted: text ids that are taken.
    """
    known = pa.array(sorted(wanted))

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table["text_id"], known))  # pyright: ignore[reportAttributeAccessIssue]

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.default_hash_shuffle_parallelism = 4
    parts: list[ray.data.Dataset] = []
    for files, columns in (
        (texts.ratings, [("text_id", "response")]),
        (texts.pairs, [("chosen_id", "chosen"), ("rejected_id", "rejected")]),
    ):
        if files:
            names = ["prompt_id", "prompt", *(name for pair in columns for name in pair)]
            rows = ray.data.read_parquet(list(files), columns=names)
            parts.append(rows.map_batches(as_trees(columns), batch_format="pyarrow"))
    rows = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    data = rows.map_batches(keep, batch_format="pyarrow")
    trees = data.groupby("prompt_id").map_groups(one_prompt, batch_format="numpy")
    # Blocks of one shard each: counts arrive, and are lost, shard by shard. All of this ends
    # before the actors take the CPUs: on a full cluster it would wait for them for ever.
    return trees.repartition(target_num_rows_per_block=SHARD_PROMPTS).materialize()


def embed(
    texts: Texts,
    source: Source,
    depths: tuple[int, ...],
    watch: Watch,
    *,
    prompts: frozenset[str] | None = None,
) -> tuple[FeatureStore, dict[str, int]]:
    """Embeds what is missing and returns the store and the counts of this run.

    Args:
        texts: canonical files.
        source: backbone, workers and cache.
        depths: layers whose states are stored.
        watch: is shown the progress.
        prompts: embed only the responses to these prompts (to choose a layer on a sample).
    """
    store, ids = source.store(depths), wanted_ids(texts, prompts)
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    for tries_left in reversed(range(MAX_FAILURES + 1)):
        missing = frozenset(np.array(ids, dtype=object)[store.find("texts", ids).missing_N])
        if not missing:
            break
        try:
            with watch.bar("embedding texts", len(missing)) as advance:
                for row in embed_missing(texts, missing, source, store, depths).iter_rows():
                    for name in counts:
                        counts[name] += int(row[name])
                    advance(int(row["texts"]))
        except LOST:
            if not tries_left:
                raise
            watch.say("embedding: a node was lost; going on with what is missing")
    return store, counts


def embed_missing(
    texts: Texts,
    missing: frozenset[str],
    source: Source,
    store: FeatureStore,
    depths: tuple[int, ...],
) -> ray.data.Dataset:
    """Returns the counts of each shard that the actors write, as they come."""
    pool = source.pool
    return prompt_trees(texts, missing).map_batches(
        Embedder,
        fn_constructor_args=(source.probed.config, depths, store, max(1, int(pool.cpus))),
        batch_size=SHARD_PROMPTS,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(size=pool.num_actors),
    )
