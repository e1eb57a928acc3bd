"""Scores as any scoring leaves them and any report reads them: one row for each response.

`scorer, item_id, candidate, score, cut, error, cost, parts, transient`: a score that failed is null
beside its error, and `transient` says that asking again may give it. Rows come in segments, each
written once and whole, so that a run that is killed keeps what came; `scores.parquet` is all of
them in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.parquet import row_batches
from panoply.files import create_once, reading, whole_file
from panoply.wire.request import Details, Score

SCORES = pa.schema(
    [
        ("scorer", pa.string()),
        ("item_id", pa.string()),
        ("candidate", pa.int32()),
        ("score", pa.float64()),
        ("cut", pa.int32()),
        ("error", pa.string()),
        ("cost", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("transient", pa.bool_()),
    ]
)
"""A score. `candidate` is the place of the response in its item, `cut` the tokens that limits cut
away, `cost` what a judge took for it (null: not known), `parts` the numbers that it consists of."""
BATCH_ROWS = 1 << 14
SCORES_FILE, SEGMENTS = "scores.parquet", "scores"
ItemKey: TypeAlias = tuple[str, str]
"""Name of a scorer, and id of an item."""


def score_rows(scorer: str, item: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Returns the rows of the scores of an item's responses."""
    rows: list[dict[str, Any]] = []
    for candidate, score in enumerate(scores):
        details = score.details
        rows.append(
            {
                "scorer": scorer,
                "item_id": item,
                "candidate": candidate,
                "score": score.score,
                "cut": score.num_cut,
                "error": score.error or None,
                "cost": details.usage.get("cost"),
                "parts": list(details.objectives.items()),
                "transient": score.transient,
            }
        )
    return rows


def as_score(row: Mapping[str, Any]) -> Score:
    """Returns the score of a row."""
    usage = {} if row["cost"] is None else {"cost": row["cost"]}
    return Score(
        score=row["score"],
        error=row["error"] or "",
        transient=bool(row["transient"]),
        details=Details(objectives=dict(row["parts"] or ()), usage=usage),
        num_cut=row["cut"] or 0,
    )


def read_scores(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file of scores.

    Raises:
        ValueError: the file is damaged, or lacks a column.
    """
    with reading(file), pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        if missing := sorted(set(SCORES.names) - set(parquet.schema_arrow.names)):
            raise ValueError(f"no column {missing[0]!r}, which a file of scores has")
        for batch in row_batches(parquet, BATCH_ROWS, SCORES.names):
            yield from batch.to_pylist()


class ScoreFolder:
    """The scores of a run's folder, to which segments are added while scores come."""

    def __init__(self, out: Path) -> None:
        """Reads what is there: `scores.parquet`, then the segments, of which later ones win.

        Raises:
            ValueError: a file is damaged.
        """
        self.file, self.folder = out / SCORES_FILE, out / SEGMENTS
        self.items: dict[ItemKey, dict[int, dict[str, Any]]] = {}
        self.segments = sorted(self.folder.glob("[0-9]*.parquet"))
        last = self.segments[-1].stem if self.segments else "0"
        self.number = int(last) + 1
        for file in ([self.file] if self.file.is_file() else []) + self.segments:
            self._add(read_scores(file))

    def lacks(self, scorer: str, item: str, num: int) -> bool:
        """Returns whether an item has to be asked about: a score is missing that may be had.

        Args:
            scorer: name of the scorer.
            item: id of the item.
            num: responses of the item.
        """
        rows = self.items.get((scorer, item), {})
        return len(rows) < num or any(row["transient"] for row in rows.values())

    def scores(self, scorer: str, item: str) -> list[dict[str, Any]]:
        """Returns the rows of an item in the order of its responses."""
        rows = self.items[scorer, item]
        return [rows[candidate] for candidate in sorted(rows)]

    def append(self, rows: pa.Table) -> None:
        """Adds scores as a segment, which is on the disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sink = pa.BufferOutputStream()
        pq.write_table(rows.cast(SCORES), sink, write_page_checksum=True)
        path = self.folder / f"{self.number:08d}.parquet"
        if not create_once(path, sink.getvalue().to_pybytes()):
            raise FileExistsError(f"{str(path)!r} was written by another process")
        self.segments.append(path)
        self.number += 1
        self._add(iter(rows.to_pylist()))

    def seal(self) -> None:
        """Writes all scores into `scores.parquet`, in the order of their keys, if any came."""
        if self.file.is_file() and not self.segments:
            return
        rows: list[dict[str, Any]] = []
        for scorer, item in sorted(self.items):
            rows += self.scores(scorer, item)
        with whole_file(self.file) as partial:
            table = pa.Table.from_pylist(rows, SCORES)
            pq.write_table(table, partial, write_page_checksum=True)
        for segment in self.segments:
            segment.unlink()
        self.segments = []

    def _add(self, rows: Iterator[dict[str, Any]]) -> None:
        for row in rows:
            key = (row["scorer"], row["item_id"])
            self.items.setdefault(key, {})[row["candidate"]] = row
