"""Rows that repeat or contradict another row: counted while they pass, and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from panoply.data.seen_keys import SeenKeys


@dataclass
class Repeats:
    """Counts of rows that an earlier row of the same ingestion repeats or contradicts."""

    num_repeated: int = 0
    """Rows with the texts of an earlier row: the same pair, or one more rating of a response."""
    num_contradicting: int = 0
    """Pairs whose chosen and rejected responses an earlier pair has the other way round."""

    def count(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields canonical rows as they are, and counts them; a key of each is kept."""
        seen = SeenKeys()
        for row in rows:
            if "text_id" in row:
                key = _key(row["source"], row["text_id"])
            else:
                key = _key(row["chosen_id"], row["rejected_id"])
                self.num_contradicting += _key(row["rejected_id"], row["chosen_id"]) in seen
            self.num_repeated += seen.add(key)
            yield row


def _key(*names: str) -> int:
    return hash(names) & 0xFFFF_FFFF_FFFF_FFFF or 1
