"""Scores of texts by a finished reward model, on an actor pool.

Legend: `N` texts, `O` objectives, `K` heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.types import ObjectRef

from actors.scorer import ScoringActor
from panoply.files import reading
from panoply.report.progress import RunLogger
from panoply.seal import COPY_AGAIN
from panoply.types import Array, Ints, Strings
from workflows.cluster.embed import (
    TextFiles,
    Workers,
    into_shards,
    shards_for,
    wanted_texts,
)

PER_SOURCE = "per_source."


@dataclass(frozen=True, slots=True)
class TextScores:
    """Scores of texts `[N]` by scorer."""

    row: Mapping[str, int]
    """Row of each text id."""
    scores: Mapping[str, Array]
    per_source: Mapping[str, Array]
    """Scores by the weights of one source; empty for scalar models."""
    weights_NO: NDArray[np.float32] | None
    """The gate's weights for the prompts of the texts; scalar models have none."""
    num_cut_N: Ints | None
    """Tokens of each text that limits cut away; None where the scorer does not tell."""
    members_NK: Array | None = None
    """Standardized scores of the heads of a scalar model of ours; None of any other scorer."""

    def rows(self, ids: Strings) -> Ints:
        """Returns the rows of some text ids."""
        return np.array([self.row[str(name)] for name in ids], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Shards:
    """Texts as any number of models may score them, one after the other."""

    data: Sequence[pa.Table | ObjectRef[pa.Table]]
    num_texts: int

    @classmethod
    def of(
        cls, texts: TextFiles, workers: Workers, prompts: frozenset[str] | None = None
    ) -> Shards:
        """Reads canonical files.

        Args:
            texts: the files.
            workers: what scores them.
            prompts: ids of the prompts whose responses are scored; None: all.
        """
        plan = into_shards(wanted_texts(texts, prompts))
        return cls(shards_for(workers, texts, plan), plan.num_rows)


def score_texts(shards: Shards, model: str, workers: Workers, logger: RunLogger) -> TextScores:
    """Scores every text with every scorer of a model.

    Args:
        shards: the texts.
        model: folder, as `load_reward_model` takes it.
        workers: what scores them.
        logger: of the run.
    """
    names: list[str] = []
    parts: list[dict[str, Array]] = []
    with logger.bar("scoring texts", shards.num_texts) as advance:
        for batch in workers.map_made(ScoringActor, (model, 1), shards.data):
            ids: list[str] = batch["text_id"].to_pylist()
            names += ids
            parts.append({c: as_array(batch[c]) for c in batch.column_names if c != "text_id"})
            advance(len(ids))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weights_NO, members_NK = columns.pop("gate_weights", None), columns.pop("members", None)
    num_cut_N = columns.pop("num_cut").astype(np.int64)
    return TextScores(
        row={name: i for i, name in enumerate(names)},
        scores={k: v for k, v in columns.items() if not k.startswith(PER_SOURCE)},
        per_source={
            k.removeprefix(PER_SOURCE): v for k, v in columns.items() if k.startswith(PER_SOURCE)
        },
        weights_NO=None if weights_NO is None else weights_NO.astype(np.float32),
        num_cut_N=num_cut_N,
        members_NK=members_NK,
    )


def as_array(column: pa.ChunkedArray) -> Array:
    """Returns a column of numbers `[N]`, or of lists of one length `[N, O]`."""
    if pa.types.is_list(column.type):
        return np.stack(column.to_numpy(zero_copy_only=False))  # pyright: ignore[reportArgumentType]
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def is_seen(keys: Strings, folder: Path) -> NDArray[np.bool_]:
    """Returns which split keys a model was trained or chosen on."""
    with reading(folder / "seen.npy", COPY_AGAIN):
        seen = np.load(folder / "seen.npy", allow_pickle=False)
    return np.isin(np.array([int(key[:16], 16) for key in keys], dtype=np.uint64), seen)
