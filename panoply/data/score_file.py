"""Scores as any scoring leaves them and any report reads them: one row for each response.

`scorer, item_id, candidate, score, cut, error, cost, parts, transient`: a score that failed is null
beside its error, and `transient` says that asking again may give it. Rows come in segments, each
written once and whole, so that a run that is killed keeps what came; `scores.parquet` is all of
them in one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panoply.data.parquet import row_batches
from panoply.files import create_once, reading, whole_file
from panoply.types import Array, Ints
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
STORED = pa.schema(list(SCORES)[2:])
"""What a table in memory has of a row, without the scorer and the item."""
PLACE = np.dtype([("start", np.int64), ("num", np.int32), ("transient", np.bool_)])
"""Where the rows of an item begin, how many there are, and whether one of them is transient."""
BATCH_ROWS = 1 << 14
ITEMS_OF_GROUP = 1 << 14
"""Items of a row group of `scores.parquet`."""
SCORES_FILE, SEGMENTS = "scores.parquet", "scores"


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


def scorers_of(source: Path | pa.NativeFile) -> list[str]:
    """Returns the names of the scorers of a file of scores, sorted."""
    table = pq.read_table(source, columns=["scorer"], read_dictionary=["scorer"])
    return sorted(table["scorer"].unique().to_pylist())


def read_scores(source: Path | pa.NativeFile, scorer: str = "") -> pa.Table:
    """Returns the rows of a file of scores, of one scorer or, without a name, of all.

    Raises:
        ValueError: it lacks a column.
    """
    with pq.ParquetFile(
        source, read_dictionary=["scorer", "item_id"], page_checksum_verification=True
    ) as parquet:
        if missing := sorted(set(SCORES.names) - set(parquet.schema_arrow.names)):
            raise ValueError(f"no column {missing[0]!r}, which a file of scores has")
        tables: list[pa.Table] = []
        for batch in row_batches(parquet, BATCH_ROWS, SCORES.names):
            rows = pa.Table.from_batches([batch])
            if scorer:
                rows = rows.filter(pc.equal(rows["scorer"], scorer))  # pyright: ignore[reportAttributeAccessIssue]
            tables.append(rows)
    return pa.concat_tables(tables) if tables else SCORES.empty_table()


class ScoreTable:
    """Scores in memory, found by scorer and item: some 40 bytes a row, whatever the names take."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._places: dict[str, NDArray[Any]] = {}
        self._rows = STORED.empty_table()
        self._added: list[pa.Table] = []
        self.num_rows = 0

    @property
    def scorers(self) -> list[str]:
        """Names of the scorers, sorted."""
        return sorted(self._places)

    def items(self, scorer: str) -> list[str]:
        """Returns the ids of the items of which a scorer has rows, sorted."""
        num_I = self._places[scorer]["num"]
        return sorted(name for name, i in self._numbers.items() if i < len(num_I) and num_I[i])

    def lacks(self, scorer: str, item: str, num: int) -> bool:
        """Returns whether an item has to be asked about: a score is missing that may be had.

        Args:
            scorer: name of the scorer.
            item: id of the item.
            num: responses of the item.
        """
        place_I, number = self._places.get(scorer), self._numbers.get(item)
        if place_I is None or number is None or number >= len(place_I):
            return True
        place = place_I[number]
        return bool(place["num"] < num or place["transient"])

    def rows(self, scorer: str, items: Sequence[str]) -> pa.Table:
        """Returns the rows of some items, one after the other, in the order of their responses.

        An item of which there is no score has no row.
        """
        number_J = np.array([self._numbers.get(item, -1) for item in items], np.int64)
        place_I = self._places.get(scorer, np.zeros(0, PLACE))
        is_known_J = (number_J >= 0) & (number_J < len(place_I))
        place_J = np.zeros(len(items), PLACE)
        place_J[is_known_J] = place_I[number_J[is_known_J]]
        num_J = place_J["num"].astype(np.int64)
        first_J = np.cumsum(num_J) - num_J
        rows = np.repeat(place_J["start"] - first_J, num_J) + np.arange(num_J.sum())
        columns = self._stored().take(pa.array(rows))
        names = pa.array(items, pa.string()).take(pa.array(np.repeat(np.arange(len(items)), num_J)))
        arrays = [pa.repeat(scorer, len(rows)), names, *columns.columns]
        return pa.Table.from_arrays(arrays, schema=SCORES)

    def of_item(self, scorer: str, item: str) -> list[dict[str, Any]]:
        """Returns the rows of one item, in the order of its responses; none of an unknown one."""
        place_I, number = self._places.get(scorer), self._numbers.get(item)
        if place_I is None or number is None or number >= len(place_I):
            return []
        place = place_I[number]
        rows = self._stored().slice(int(place["start"]), int(place["num"])).to_pylist()
        return [{"scorer": scorer, "item_id": item, **row} for row in rows]

    def add(self, rows: pa.Table) -> None:
        """Adds rows, which replace those of the same item and scorer."""
        if not rows.num_rows:
            return
        scorers, scorer_N = _codes(rows["scorer"])
        items, item_N = _codes(rows["item_id"])
        number_of = [self._numbers.setdefault(name, len(self._numbers)) for name in items]
        number_N = np.array(number_of, np.int64)[item_N]
        candidate_N = rows["candidate"].to_numpy()
        order = np.lexsort((candidate_N, number_N, scorer_N))  # stable: the last of equals is last
        keys = np.stack([scorer_N, number_N, candidate_N])[:, order]
        is_last = np.append((keys[:, 1:] != keys[:, :-1]).any(axis=0), True)
        order, keys = order[is_last], keys[:, is_last]
        stored = rows.take(pa.array(order)).select(STORED.names).cast(STORED)
        start_J = np.flatnonzero(np.append(True, (keys[:2, 1:] != keys[:2, :-1]).any(axis=0)))
        place_J = np.zeros(len(start_J), PLACE)
        place_J["start"] = start_J + self.num_rows
        place_J["num"] = np.diff(start_J, append=len(order))
        transient_N = stored["transient"].fill_null(False).to_numpy()
        place_J["transient"] = np.logical_or.reduceat(transient_N, start_J)
        for code, scorer in enumerate(scorers):
            here = keys[0, start_J] == code
            self._place(scorer, keys[1, start_J][here], place_J[here])
        self._added.append(stored)
        self.num_rows += stored.num_rows

    def _place(self, scorer: str, number_J: Ints, place_J: NDArray[Any]) -> None:
        place_I = self._places.get(scorer, np.zeros(0, PLACE))
        if len(place_I) < len(self._numbers):  # grows by half, so that it is seldom copied
            longer = np.zeros(len(self._numbers) * 3 // 2, PLACE)
            longer[: len(place_I)] = place_I
            self._places[scorer] = place_I = longer
        place_I[number_J] = place_J

    def _stored(self) -> pa.Table:
        """Returns all rows as one table, in one piece: rows are taken from it in any order."""
        if self._added:
            self._rows = pa.concat_tables([self._rows, *self._added]).combine_chunks()
            self._added = []
        return self._rows


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """Returns the different values of a column, and which of them each row has."""
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


class ScoreFolder:
    """The scores of a run's folder, to which segments are added while scores come."""

    def __init__(self, out: Path) -> None:
        """Reads what is there: `scores.parquet`, then the segments, of which later ones win.

        Raises:
            ValueError: a file is damaged.
        """
        self.file, self.folder = out / SCORES_FILE, out / SEGMENTS
        self.table = ScoreTable()
        self.segments = sorted(self.folder.glob("[0-9]*.parquet"))
        last = self.segments[-1].stem if self.segments else "0"
        self.number = int(last) + 1
        for file in ([self.file] if self.file.is_file() else []) + self.segments:
            with reading(file):
                self.table.add(read_scores(file))

    def lacks(self, scorer: str, item: str, num: int) -> bool:
        """Returns whether a scorer has to be asked about an item; see `ScoreTable.lacks`."""
        return self.table.lacks(scorer, item, num)

    def scores(self, scorer: str, item: str) -> list[dict[str, Any]]:
        """Returns the rows of an item in the order of its responses."""
        return self.table.of_item(scorer, item)

    def values(self, scorer: str, items: Sequence[str], num: int) -> Array:
        """Returns the scores of the responses of some items, NaN where missing.

        Args:
            scorer: name of the scorer.
            items: their ids.
            num: responses of all of them.

        Raises:
            KeyError: a response has no row, not even one without a score.
        """
        score_T = self.table.rows(scorer, items)["score"].to_numpy()  # a null becomes NaN
        if len(score_T) != num:
            raise KeyError(f"{scorer!r} has {len(score_T)} rows of {num} responses")
        return score_T

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
        self.table.add(rows)

    def seal(self) -> None:
        """Writes all scores into `scores.parquet`, in the order of their keys, if any came."""
        if self.file.is_file() and not self.segments:
            return
        with (
            whole_file(self.file) as partial,
            pq.ParquetWriter(partial, SCORES, write_page_checksum=True) as writer,
        ):
            for scorer in self.table.scorers:
                items = self.table.items(scorer)
                for start in range(0, len(items), ITEMS_OF_GROUP):
                    part = items[start : start + ITEMS_OF_GROUP]
                    writer.write_table(self.table.rows(scorer, part))
        for segment in self.segments:
            segment.unlink()
        self.segments = []
