"""Checks of the one split over files that are already ingested.

The part of a row is `schema.part_of(split_key, seed)`. Rows of one prompt share a part unless
files give it different `group`s; these checks find that before it flatters a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from panoply.data.parquet import row_batches
from panoply.data.schema import PARTS, Part, part_of, split_key


def _columns(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in row_batches(file, 1024, names):
            yield from batch.to_pylist()


def check_parts(path: Path, seed: int) -> dict[Part, int]:
    """Returns the number of rows by part of an ingested file.

    Raises:
        ValueError: if all rows share one split key, or a part has no row.
    """
    parts: Counter[Part] = Counter()
    first, is_split = "", False
    for row in _columns(path, ["split_key"]):
        key = row["split_key"]
        first = first or key
        is_split = is_split or key != first
        parts[part_of(key, seed)] += 1
    if not is_split:
        raise ValueError(
            f"{str(path)!r}: all {parts.total()} rows share one prompt (or group), so they "
            "cannot be split; add rows of other prompts"
        )
    counts: dict[Part, int] = {part: parts[part] for part in PARTS}
    missing = [part for part in PARTS if not counts[part]]
    if missing:
        num_keys = len({row["split_key"] for row in _columns(path, ["split_key"])})
        raise ValueError(
            f"{str(path)!r}: no row falls into {', '.join(missing)} ({num_keys} distinct "
            f"prompts or groups, seed {seed}); add rows of other prompts or take another seed"
        )
    return counts


def leaked_prompts(train: Sequence[Path], test: Sequence[Path], seed: int) -> dict[str, str]:
    """Returns prompts of *test* rows of some files that are prompts of *train* rows of others.

    Prompts are compared as the split does: without case and white space.

    Args:
        train: ingested files whose *train* rows are learned from.
        test: ingested files whose *test* rows are reported.
        seed: seed of the split.

    Returns:
        The start of the prompt's last turn, by normalized prompt; empty where the split is clean.
    """
    tested: dict[str, str] = {}
    for path in test:
        for row in _columns(path, ["split_key", "prompt"]):
            if part_of(row["split_key"], seed) == "test":
                tested[split_key(row["prompt"])] = row["prompt"][-1]["content"][:80]
    leaked: dict[str, str] = {}
    for path in train:
        for row in _columns(path, ["split_key", "prompt"]):
            if part_of(row["split_key"], seed) == "train":
                key = split_key(row["prompt"])
                if key in tested:
                    leaked[key] = tested[key]
    return leaked


def check_split(ratings: Path, pairs: Path, seed: int) -> None:
    """Checks that no prompt of a *test* pair is in a *train* rating.

    Raises:
        ValueError: if one is, with how many and an example.
    """
    leaked = leaked_prompts([ratings], [pairs], seed)
    if leaked:
        raise ValueError(
            f"{len(leaked)} prompts of test pairs are in training ratings, for example "
            f"{next(iter(leaked.values()))!r}; the files give them different `group`s: use the "
            "same in both, or leave the column out"
        )
