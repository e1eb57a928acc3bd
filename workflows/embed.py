"""Embedding on Ray Data: canonical rows -> token trees -> actor pool -> feature shards.

Every prompt meets all its responses, from ratings and pairs alike, in one tree. Only what no
shard holds is embedded, so a rerun or a crash pays for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy

from actors.embedder import Embedder, feature_key
from panoply.config import BackboneConfig
from panoply.data.features import FeatureStore
from panoply.hub.backbone import load_backbone

SHARD_PROMPTS = 64


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
    def of_cluster(cls, num_workers: int) -> Pool:
        """One actor per worker, each on a GPU where the cluster has one for it."""
        num = max(1, num_workers)
        has = ray.cluster_resources()
        gpus = 1.0 if has.get("GPU", 0) >= num else 0.0
        return cls(num, 1.0, gpus)


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


def wanted_ids(texts: Texts) -> tuple[list[str], list[str]]:
    """Returns all text ids and all prompt ids of the files, each once, sorted."""
    names: set[str] = set()
    prompts: set[str] = set()
    for files, columns in (
        (texts.ratings, ("text_id",)),
        (texts.pairs, ("chosen_id", "rejected_id")),
    ):
        for file in files:
            table = pq.read_table(file, columns=["prompt_id", *columns])
            prompts.update(table["prompt_id"].to_pylist())
            for column in columns:
                names.update(table[column].to_pylist())
    return sorted(names), sorted(prompts)


def prompt_trees(
    texts: Texts, wanted: frozenset[str], prompts: frozenset[str] | None = None
) -> ray.data.Dataset:
    """Returns one row per prompt: `prompt_id`, `prompt` (JSON), `text_ids`, `responses`.

    Args:
        texts: canonical files.
        wanted: text ids that are taken.
        prompts: prompt ids that are taken; None takes all.
    """

    def keep(table: pa.Table) -> pa.Table:
        rows = [
            name in wanted and (prompts is None or prompt in prompts)
            for name, prompt in zip(
                table["text_id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True
            )
        ]
        return table.filter(pa.array(rows, pa.bool_()))

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
    config: BackboneConfig,
    depths: tuple[int, ...],
    store_root: str,
    pool: Pool,
    *,
    prompts: frozenset[str] | None = None,
    progress: Callable[[dict[str, int], int], None] | None = None,
) -> tuple[FeatureStore, dict[str, int]]:
    """Embeds what is missing and returns the store and the counts of this run.

    Args:
        texts: canonical files.
        config: the backbone.
        depths: layers whose states are stored.
        store_root: root of the feature cache.
        pool: the embedding actors.
        prompts: embed only the responses to these prompts (to choose a layer on a sample).
        progress: called with the counts so far and the number of texts to embed.
    """
    backbone = load_backbone(
        config.model, depths=depths, rendering=config.rendering, dtype=config.dtype
    )
    store = FeatureStore(store_root, feature_key(backbone, config))
    del backbone
    ids, _ = wanted_ids(texts)
    found = store.find("texts", ids)
    missing = frozenset(np.array(ids, dtype=object)[found.missing_N])
    counts: dict[str, int] = dict.fromkeys(
        ("texts", "prompts", "tokens", "separate_tokens", "prompts_cut", "responses_cut"), 0
    )
    if not missing:
        return store, counts

    trees = prompt_trees(texts, missing, prompts)
    done = trees.map_batches(
        Embedder,
        fn_constructor_args=(config, depths, store_root, max(1, int(pool.cpus))),
        batch_size=SHARD_PROMPTS,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(size=pool.num_actors),
    )
    for row in done.iter_rows():
        for name in counts:
            counts[name] += int(row[name])
        counts["shares_prefixes"] = int(row["shares_prefixes"])
        if progress is not None:
            progress(counts, len(missing))
    return store, counts
