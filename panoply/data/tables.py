"""Ingested files without their texts: ids, parts, folds and labels as arrays.

These are a few hundred bytes a row; texts and features stay on disk and are found by id.

Legend: `N` ratings, `P` pairs, `O` objectives.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from panoply.data.ratings import RatingMap
from panoply.data.schema import Part, fold_of, part_of
from panoply.measure.intervals import FEWEST_GROUPS
from panoply.types import Array, Ints, Strings


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Canonical Parquet files of ratings and of pairs, whose texts are to be embedded or scored."""

    ratings: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """Part and fold of rows: the same pure function of the split key for every file."""

    key_N: Strings
    part_N: Strings
    fold_N: Ints
    """Fold inside *train*; -1 elsewhere."""

    def of(self, part: Part) -> Ints:
        """Returns the rows of a part."""
        return np.flatnonzero(self.part_N == part)

    def describe(self, part: Part, rows: str) -> str:
        """Returns a part's size in words, and a warning where intervals have too few prompts."""
        at = self.of(part)
        num_prompts = len(set(self.key_N[at]))
        text = f"{part}: {len(at):,} {rows} of {num_prompts:,} prompts"
        return text if num_prompts >= FEWEST_GROUPS else f"{text}, too few for intervals"

    @classmethod
    def make(cls, keys: Sequence[str], seed: int, num_folds: int) -> Split:
        """Returns the split of rows with these keys."""
        parts = {key: part_of(key, seed) for key in set(keys)}
        folds = {
            key: fold_of(key, seed, num_folds) if part == "train" else -1
            for key, part in parts.items()
        }
        part_N = np.array([parts[key] for key in keys], dtype=object)
        fold_N = np.array([folds[key] for key in keys], dtype=np.int64)
        return cls(np.array(keys, dtype=object), part_N, fold_N)


@dataclass(frozen=True, slots=True)
class RatingTable:
    """Ratings in unit scale, NaN where an objective is not rated."""

    objectives: tuple[str, ...]
    text_N: Strings
    prompt_N: Strings
    source_N: Strings
    length_N: Ints
    labels_NO: Array
    split: Split

    def without(self, names: Container[str]) -> RatingTable:
        """Returns the table without some objectives."""
        kept = [i for i, name in enumerate(self.objectives) if name not in names]
        objectives = tuple(self.objectives[i] for i in kept)
        return replace(self, objectives=objectives, labels_NO=self.labels_NO[:, kept])


@dataclass(frozen=True, slots=True)
class PairTable:
    """Pairs with the lengths of both responses in characters."""

    prompt_P: Strings
    chosen_P: Strings
    rejected_P: Strings
    source_P: Strings
    domain_P: Strings
    """The subset where a file has a few of them, else the source."""
    chosen_length_P: Ints
    rejected_length_P: Ints
    split: Split

    @property
    def gap_P(self) -> Ints:
        """Length of the chosen minus length of the rejected response."""
        return self.chosen_length_P - self.rejected_length_P


def load_ratings(
    path: Path,
    objectives: Sequence[str],
    maps: Mapping[str, RatingMap],
    *,
    seed: int,
    num_folds: int,
) -> RatingTable:
    """Loads ids and labels of an ingested rating file; labels go through their rating maps."""
    fixed = ["text_id", "prompt_id", "split_key", "source", "length"]
    table = pq.read_table(path, columns=[*fixed, *objectives])
    labels = np.full((table.num_rows, len(objectives)), np.nan)
    for i, name in enumerate(objectives):
        raw = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        labels[:, i] = maps[name].to_unit(raw)
    return RatingTable(
        objectives=tuple(objectives),
        text_N=_strings(table["text_id"]),
        prompt_N=_strings(table["prompt_id"]),
        source_N=_strings(table["source"]),
        length_N=table["length"].to_numpy().astype(np.int64),
        labels_NO=labels,
        split=Split.make(table["split_key"].to_pylist(), seed, num_folds),
    )


def in_one_fold(ratings: RatingTable) -> dict[str, str]:
    """Returns objectives that cannot be fitted out of fold, with the reason.

    Their training ratings all fall into one fold, mostly because all answer one prompt.
    """
    reasons: dict[str, str] = {}
    for name, labels_N in zip(ratings.objectives, ratings.labels_NO.T, strict=True):
        rows = ~np.isnan(labels_N)
        if len(set(ratings.split.fold_N[rows]) - {-1}) < 2:
            prompts = len(set(ratings.split.key_N[rows]))
            groups = "one prompt or group" if prompts == 1 else f"{prompts} prompts or groups"
            reasons[name] = f"its ratings are of {groups}, too few to fit it out of fold"
    return reasons


def load_pairs(path: Path, *, seed: int, num_folds: int, max_domains: int = 12) -> PairTable:
    """Loads ids and lengths of an ingested pair file."""
    names = ["prompt_id", "chosen_id", "rejected_id", "split_key", "source", "subset"]
    table = pq.read_table(path, columns=[*names, "chosen_length", "rejected_length"])
    source, subset = _strings(table["source"]), _strings(table["subset"])
    is_named = all(isinstance(name, str) and name for name in subset)
    few = is_named and 1 < len(set(subset)) <= max_domains
    return PairTable(
        prompt_P=_strings(table["prompt_id"]),
        chosen_P=_strings(table["chosen_id"]),
        rejected_P=_strings(table["rejected_id"]),
        source_P=source,
        domain_P=subset if few else source,
        chosen_length_P=table["chosen_length"].to_numpy().astype(np.int64),
        rejected_length_P=table["rejected_length"].to_numpy().astype(np.int64),
        split=Split.make(table["split_key"].to_pylist(), seed, num_folds),
    )


def _strings(column: Any) -> Strings:
    return np.array(column.to_pylist(), dtype=object)
