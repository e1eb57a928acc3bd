"""Pairs as token trees on disk: rendered once, read by any worker, in the order of the pairs.

Legend: `P` pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.files import reading, whole_file
from panoply.model.tree import Branch, TokenTree
from panoply.types import Bools, Ints

IDS = pa.list_(pa.int32())
SPAN = pa.list_(pa.int32(), 2)
SCHEMA = pa.schema(
    [
        ("shared", IDS),
        ("chosen", IDS),
        ("rejected", IDS),
        ("chosen_span", SPAN),
        ("rejected_span", SPAN),
        ("gate", pa.int32()),
        ("num_tokens", pa.int32()),
        ("largest_id", pa.int32()),
    ]
)
ROWS = 1024
"""Pairs written at once."""


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """A file of trees with two branches, chosen first."""

    table: pa.Table
    notes: Mapping[str, int]
    """Counts written with the trees."""

    @classmethod
    def open(cls, path: Path) -> TokenPairs:
        """Opens a file; what is not read stays on disk.

        Raises:
            ValueError: the file is damaged.
        """
        with reading(path):
            stored = pq.read_metadata(path).metadata or {}
            table = pq.read_table(path, memory_map=True)
        notes = {name.decode(): int(count) for name, count in stored.items() if count.isdigit()}
        return cls(table, notes)

    def tree(self, row: int) -> TokenTree:
        """Returns the tree of a pair."""
        pair = self.table.slice(row, 1).to_pylist()[0]
        branches = tuple(Branch(tuple(pair[side]), *pair[f"{side}_span"]) for side in SIDES)
        return TokenTree(tuple(pair["shared"]), branches, pair["gate"])

    def column(self, name: str) -> Ints:
        """Returns `num_tokens` or `largest_id` `[P]`."""
        return self.table[name].to_numpy().astype(np.int64)

    def alike(self) -> Bools:
        """Returns `[P]`: whether both responses are the same tokens, as limits can make them."""
        chosen, rejected = self.table["chosen"].to_pylist(), self.table["rejected"].to_pylist()
        return np.array([a == b for a, b in zip(chosen, rejected, strict=True)], dtype=np.bool_)


SIDES = ("chosen", "rejected")


def write_tokens(path: Path, trees: Iterable[TokenTree], notes: Mapping[str, int]) -> None:
    """Writes trees of a chosen and a rejected branch; the file appears when it is whole.

    Args:
        path: of the file.
        trees: in the order of the pairs.
        notes: counts that belong to them, read when all trees are written.
    """
    with whole_file(path) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        for tree in trees:
            rows.append(_row(tree))
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        writer.add_key_value_metadata({name: str(count) for name, count in notes.items()})


def _row(tree: TokenTree) -> dict[str, Any]:
    chosen, rejected = tree.branches
    return {
        "shared": tree.shared,
        "chosen": chosen.tokens,
        "rejected": rejected.tokens,
        "chosen_span": (chosen.start, chosen.stop),
        "rejected_span": (rejected.start, rejected.stop),
        "gate": tree.gate,
        "num_tokens": tree.num_tokens,
        "largest_id": max((*tree.shared, *chosen.tokens, *rejected.tokens)),
    }
