"""Stage 1: ratings -> sums per block on Ray Train -> one ridge per objective.

Blocks are immutable and stored under the hash of what they hold, so kill, resume and the number
of workers give the same sums by construction; they are added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from actors.embedder import Probed
from actors.fitters import Block, SumsTask, accumulate
from panoply.armorm.ridge import (
    Moments,
    Ridge,
    choose,
    fit_ridge,
    load,
    merge,
    refit_ridge,
    squared_error,
    without,
)
from panoply.config.armorm import ObjectivesConfig
from panoply.data.features import FeatureStore, Found
from panoply.data.schema import digest
from panoply.data.tables import PairTable, RatingTable
from panoply.measure.metrics import regression_metrics, spearman
from panoply.types import Array, Floats, Ints
from workflows.cluster.feature_selection import FeatureSpec
from workflows.cluster.ray_cluster import run_train

Pattern: TypeAlias = tuple[int, ...]
SELECT = -1
DRAWS = 300
MARGIN = 0.05
"""What an objective has to add to the prompt alone, in rank correlation, to count as signal."""


@dataclass(frozen=True, slots=True)
class FittedObjectives:
    """Fitted objectives: one solution on all of *train*, and one without each fold."""

    full: Ridge
    folds: tuple[Ridge, ...]
    columns: tuple[str, ...]

    def values(self, store: FeatureStore, found: Found, fold_N: Ints) -> Array:
        """Returns `[N, O]` objective values; a training row's come from the fit without its fold.

        Features are read shard by shard and dropped.
        """
        values = np.empty((len(fold_N), len(self.full.bias)))
        for rows, x in store.gather(found, self.columns):
            for fold in np.unique(fold_N[rows]):
                ridge = self.full if fold < 0 else self.folds[fold]
                own = rows[fold_N[rows] == fold]
                values[own] = x[fold_N[rows] == fold] @ ridge.weights.T + ridge.bias
        return values

    def only(self, i: int) -> FittedObjectives:
        """Returns objective `i` alone."""
        one = slice(i, i + 1)
        full, *folds = (
            Ridge(fit.weights[one], fit.bias[one], fit.strength[one])
            for fit in (self.full, *self.folds)
        )
        return FittedObjectives(full, tuple(folds), self.columns)


@dataclass(frozen=True, slots=True)
class Stage1:
    """Fitted objectives and where their features come from."""

    probed: Probed
    place: FeatureSpec
    store: FeatureStore
    rated: FittedObjectives
    length: FittedObjectives
    """r_v alone: predicted log length, or the rated verbosity."""
    prompt_alone: FittedObjectives
    unit_O: Array
    """Deviation of the training ratings of each objective."""

    @property
    def backbone_summary(self) -> dict[str, Any]:
        """How the backbone computed."""
        return {
            "dtype": self.probed.config.dtype,
            "drift": self.probed.drift,
            "shares_prefixes": self.probed.shares_prefixes,
        }


def plan_blocks(
    labels_NO: Array, fold_N: Ints, places: Found, block_rows: int, key: str
) -> list[Block]:
    """Cuts rated rows into blocks of one fold and one missingness pattern, in shard order.

    Args:
        labels_NO: NaN where not rated.
        fold_N: fold of the row, SELECT for *select*; rows below SELECT are left out.
        places: where the rows' features are.
        block_rows: most rows in a block.
        key: names the features; part of each block's name.
    """
    blocks: list[Block] = []
    masks, which = np.unique(~np.isnan(labels_NO), axis=0, return_inverse=True)
    for number, mask in enumerate(masks):
        pattern = tuple(int(i) for i in np.flatnonzero(mask))
        for fold in np.unique(fold_N[fold_N >= SELECT]) if pattern else ():
            rows = np.flatnonzero((which.reshape(-1) == number) & (fold_N == fold))
            rows = rows[np.lexsort((places.row_N[rows], places.shard_N[rows]))]
            for start in range(0, len(rows), block_rows):
                part = rows[start : start + block_rows]
                held, labels = places[part], labels_NO[part][:, mask]
                where = "".join(
                    f"{held.shards[s]}:{r};" for s, r in zip(held.shard_N, held.row_N, strict=True)
                )
                name = digest(key, str(pattern), where, labels.tobytes().hex())
                blocks.append(Block(name, int(fold), pattern, held, labels))
    return blocks


def run_sums(tasks: Sequence[SumsTask], num_workers: int, run: Path) -> None:
    """Computes the sums of all blocks that have none yet, on Ray Train workers."""
    Path(tasks[0].folder).mkdir(parents=True, exist_ok=True)
    run_train(accumulate, {"tasks": list(tasks)}, num_workers, run, "sums")


def read_sums(task: SumsTask, fold: int, patterns: frozenset[Pattern]) -> dict[Pattern, Moments]:
    """Adds the stored sums of one fold's blocks, in the order of the plan."""
    wanted = (b for b in task.blocks if b.fold == fold and b.pattern in patterns)
    return merge(load(Path(task.folder) / f"{block.name}.npz") for block in wanted)


def linked_patterns(patterns: Sequence[Pattern]) -> Iterator[frozenset[Pattern]]:
    """Yields groups of patterns that share no objective, so that each is solved on its own."""
    left = sorted(set(patterns))
    while left:
        group, seen = [left.pop(0)], 0
        while seen < len(group):
            near = [p for p in left if set(p) & set(group[seen])]
            group += near
            left = [p for p in left if p not in near]
            seen += 1
        yield frozenset(group)


def solve(task: SumsTask, num_objectives: int, config: ObjectivesConfig) -> FittedObjectives:
    """Fits every objective: strength by *select*, then *train* and *train* without each fold."""
    fits = [_empty(task, num_objectives) for _ in range(config.num_folds + 1)]
    for patterns in linked_patterns([block.pattern for block in task.blocks]):
        rated = sorted({i for pattern in patterns for i in pattern})
        folds = [read_sums(task, fold, patterns) for fold in range(config.num_folds)]
        path = fit_ridge(merge(folds), num_objectives, config.strengths)
        held_out = read_sums(task, SELECT, patterns)
        full = choose(path, squared_error(path, held_out))
        _fill(fits[0], full, rated)
        for fold in range(config.num_folds):
            part = refit_ridge(without(folds, fold), full, config.strengths)
            _fill(fits[fold + 1], part, rated)
    return FittedObjectives(fits[0], tuple(fits[1:]), task.columns)


def _empty(task: SumsTask, num_objectives: int) -> Ridge:
    sums = load(Path(task.folder) / f"{task.blocks[0].name}.npz")
    size = len(next(iter(sums.values())).sum_x)
    nothing = np.full(num_objectives, np.nan)
    return Ridge(
        np.full((num_objectives, size), np.nan),
        nothing,
        np.full(num_objectives, -1, dtype=np.int64),
    )


def _fill(into: Ridge, found: Ridge, objectives: list[int]) -> None:
    for whole, part in zip(into, found, strict=True):
        whole[objectives] = part[objectives]


def sums_tasks(
    ratings: RatingTable,
    pairs: PairTable,
    store: FeatureStore,
    columns: tuple[str, ...],
    gate_column: str,
    config: ObjectivesConfig,
    folder: str,
) -> tuple[SumsTask, SumsTask, SumsTask]:
    """Returns the sums to compute: rated objectives, log length, and the prompt alone.

    Log length needs no raters, so it is learned from the texts of ratings and pairs alike.
    """
    texts = store.find("texts", list(ratings.text_N))
    prompts = store.find("prompts", list(ratings.prompt_N))
    fold_N = training_fold(ratings.split.part_N, ratings.split.fold_N)
    pair_fold = training_fold(pairs.split.part_N, pairs.split.fold_N)
    length_fold = np.concatenate([fold_N, pair_fold, pair_fold])
    lengths = np.concatenate([ratings.length_N, pairs.chosen_length_P, pairs.rejected_length_P])
    both = store.find("texts", [*ratings.text_N, *pairs.chosen_P, *pairs.rejected_P])

    def task(labels: Array, fold: Ints, places: Found, names: tuple[str, ...]) -> SumsTask:
        key = f"{store.uri}/{','.join(names)}"
        blocks = plan_blocks(labels, fold, places, config.block_rows, key)
        return SumsTask(store, names, tuple(blocks), folder)

    return (
        task(ratings.labels_NO, fold_N, texts, columns),
        task(np.log1p(lengths)[:, None], length_fold, both, columns),
        task(ratings.labels_NO, fold_N, prompts, (gate_column,)),
    )


def training_fold(part_N: NDArray[np.object_], fold_N: Ints) -> Ints:
    """Returns the fold of training rows, SELECT for *select* and SELECT - 1 for the rest."""
    return np.where(part_N == "train", fold_N, np.where(part_N == "select", SELECT, SELECT - 1))


def as_matrix(store: FeatureStore, found: Found, columns: Sequence[str], path: Path) -> Floats:
    """Writes features in the order of `found` to a memory-mapped file and returns it."""
    target = cast(Any, None)
    for rows, x in store.gather(found, columns):
        if target is None:
            shape = (len(found.shard_N), x.shape[1])
            target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        target[rows] = x
    target.flush()
    return target


def report_objectives(
    ratings: RatingTable,
    store: FeatureStore,
    rated: FittedObjectives,
    prompt_alone: FittedObjectives,
) -> dict[str, dict[str, Any]]:
    """Metrics of each objective on *test*, beside length alone and the prompt alone.

    `signal` is decided where there are most rows, on out-of-fold values of *train*: the rank
    correlation has to be above 0 beyond its interval, and above the prompt alone by MARGIN.
    """
    texts = store.find("texts", list(ratings.text_N))
    prompts = store.find("prompts", list(ratings.prompt_N))
    fold_N, key_N = ratings.split.fold_N, ratings.split.key_N
    values = rated.values(store, texts, fold_N)
    alone = prompt_alone.values(store, prompts, fold_N)
    report: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(ratings.objectives):
        found: dict[str, Any] = {}
        for prefix, rows in (("", ratings.split.of("test")), ("oof_", ratings.split.of("train"))):
            label, length = ratings.labels_NO[rows, i], ratings.length_N[rows]
            own = regression_metrics(values[rows, i], label, length, key_N[rows], draws=DRAWS)
            given = ~np.isnan(label) & ~np.isnan(alone[rows, i])
            own["prompt_spearman"] = spearman(alone[rows[given], i], label[given])
            found |= {f"{prefix}{key}": value for key, value in own.items()}
        beyond_chance = found["oof_spearman_ci95"][0] > 0
        by_prompt = np.nan_to_num(found["oof_prompt_spearman"])
        found["signal"] = bool(beyond_chance and found["oof_spearman"] > by_prompt + MARGIN)
        found["strength"] = float(rated.full.strength[i])
        report[name] = found
    return report
