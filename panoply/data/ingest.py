"""Ingestion: files in any known layout become one canonical Parquet file and a quarantine file.

Rows stream from the readers through the adapters and checks to the file, so memory does not grow
with the texts (a digest a row is kept to tell repeated rows apart, and with `max_rows_per_source`
the rows drawn so far). The file appears under its name only when it is complete.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.layouts import FileLayout, RawPair, RawRating, Row, pair_layout, rating_layout
from panoply.data.objectives import (
    Observed,
    complete_maps,
    maps_metadata,
    merge_scales,
    objective_name,
)
from panoply.data.parse import BadRow
from panoply.data.quarantine import Quarantine
from panoply.data.ratings import RatingMap
from panoply.data.read import BATCH_ROWS, Input, Opened, Unreadable, open_input
from panoply.data.schema import PAIRS, RATING_ROW, ratings_schema, uniform
from panoply.data.validate import Canonical, clean_pair, clean_rating, with_row_ids


@dataclass(frozen=True)
class IngestLimits:
    """How much to take and how much dirt to bear.

    Raises:
        ValueError: if a value is out of its range.
    """

    max_rows_per_source: int | None = None
    """At most so many rows of a source, drawn by hash; None for all."""
    max_quarantine_share: float = 0.2
    """Stop when a larger share of the rows is bad."""
    seed: int = 0
    """Draws the rows under `max_rows_per_source`."""

    def __post_init__(self) -> None:
        if self.max_rows_per_source is not None and self.max_rows_per_source < 1:
            raise ValueError(
                f"max_rows_per_source must be at least 1 or None, got {self.max_rows_per_source!r}"
            )
        if not 0.0 <= self.max_quarantine_share <= 1.0:
            raise ValueError(
                f"max_quarantine_share must lie in [0, 1], got {self.max_quarantine_share!r}"
            )


@dataclass(frozen=True)
class Ingested:
    """What an ingestion wrote."""

    path: Path
    """The canonical Parquet file."""
    quarantine: Path
    """One JSON line per bad row: file, row (from 1), reason, excerpt."""
    num_rows: Mapping[str, int]
    """Rows written, by source."""
    num_quarantined: Mapping[str, int]
    """Bad rows, by reason."""
    objectives: Mapping[str, Observed]
    """What was seen of each objective; empty for pairs."""
    maps: Mapping[str, RatingMap]
    """Rating maps, declared or inferred; none for an objective without two distinct ratings."""


@dataclass(frozen=True)
class _Job:
    """One opened file and how its rows become canonical rows."""

    opened: Opened
    convert: Callable[[Row], list[Callable[[], Canonical]]]
    """Gives a canonical row per call, so that a bad one does not take its siblings along."""


def ingest_pairs(
    inputs: Sequence[Input], out: Path, limits: IngestLimits | None = None
) -> Ingested:
    """Writes `pairs.parquet` (columns `schema.PAIRS`) and `pairs.quarantine.jsonl` into `out`.

    Raises:
        FileNotFoundError: if an input does not exist.
        ValueError: if an input is damaged or in no known layout, holds no good row, or too many
            rows are bad.
    """
    jobs: list[_Job] = []
    for opened in _open_all(inputs):
        with _naming(opened):
            layout = pair_layout(opened.columns)
            source, _ = _sources(opened, layout)
        jobs.append(_Job(opened, partial(_convert_pair, layout=layout, source=source)))
    return _ingest(jobs, Path(out) / "pairs.parquet", PAIRS, limits or IngestLimits(), {})


def ingest_ratings(
    inputs: Sequence[Input], out: Path, limits: IngestLimits | None = None
) -> Ingested:
    """Writes `ratings.parquet` (`schema.ratings_schema`) and `ratings.quarantine.jsonl`.

    Objectives are named "<source>-<attribute>"; ratings stay in the raw scale. The map of each to
    [0, 1] is written into the file, see `objectives.read_maps`.

    Raises:
        FileNotFoundError: if an input does not exist.
        ValueError: if an input is damaged or in no known layout, holds no good row, or too many
            rows are bad; if a scale is named for an unknown attribute or contradicts another.
    """
    jobs: list[_Job] = []
    declared: dict[str, RatingMap] = {}
    objectives: dict[str, None] = {}  # an ordered set
    for opened in _open_all(inputs):
        with _naming(opened):
            layout = rating_layout(opened.columns)
            source, sources = _sources(opened, layout)
            names = {
                s: {a: objective_name(s, a, sources) for a in layout.attributes} for s in sources
            }
            attributes = {name: a for of in names.values() for a, name in of.items()}
            declared |= merge_scales(attributes, layout.scales, opened.origin.scales, declared)
        objectives |= dict.fromkeys(attributes)
        convert = partial(
            _convert_rating, layout=layout, source=source, names=names, scales=declared
        )
        jobs.append(_Job(opened, convert))
    path = Path(out) / "ratings.parquet"
    return _ingest(
        jobs, path, ratings_schema(tuple(objectives)), limits or IngestLimits(), declared
    )


# Opening and naming


def _open_all(inputs: Sequence[Input]) -> list[Opened]:
    if not inputs:
        raise ValueError("no input was given; name at least one file, folder, hub name or table")
    return [opened for origin in inputs for opened in open_input(origin)]


@contextmanager
def _naming(opened: Opened) -> Generator[None]:
    """Puts the file's name in front of what its layout is blamed for."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{opened.label}: {error}") from error


def _sources(
    opened: Opened, layout: FileLayout[RawPair] | FileLayout[RawRating]
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the one source of a file, or None where its rows name theirs; and all sources.

    Many files hold one data set and use `source` for its origin. The column counts where it tells
    several data sets apart, where the rated columns bear its name, and in tables without a name.
    """
    if opened.origin.name:
        return opened.origin.name, (opened.origin.name,)
    found = opened.sources() if layout.has_source else ()
    bears_name = any(a.startswith(f"{source}-") for source in found for a in layout.attributes)
    if len(found) > 1 or bears_name or (found and opened.name is None):
        return None, found
    if opened.name is None:
        raise ValueError("the table has no column 'source'; give the input a name")
    return opened.name, (opened.name,)


# Rows


def _convert_pair(
    row: Row, layout: FileLayout[RawPair], source: str | None
) -> list[Callable[[], Canonical]]:
    raws = layout.adapt(row)
    return [partial(clean_pair, raw, source or _own_source(raw.source)) for raw in raws]


def _convert_rating(
    row: Row,
    layout: FileLayout[RawRating],
    source: str | None,
    names: Mapping[str, Mapping[str, str]],
    scales: Mapping[str, RatingMap],
) -> list[Callable[[], Canonical]]:
    cleaners: list[Callable[[], Canonical]] = []
    for raw in layout.adapt(row):
        name = source or _own_source(raw.source)
        cleaners.append(partial(clean_rating, raw, name, names[name], scales))
    return cleaners


def _own_source(source: object) -> str:
    if not isinstance(source, str) or not source:
        raise BadRow("missing source")
    return source


def _good_rows(jobs: Iterable[_Job], quarantine: Quarantine) -> Iterator[Canonical]:
    for job in jobs:
        num_before = quarantine.num_good
        for number, row in enumerate(job.opened.rows(None), start=1):
            for good in _clean_all(job, row, number, quarantine):
                quarantine.num_good += 1
                yield good
        if quarantine.num_good == num_before:
            raise ValueError(
                f"{job.opened.label} holds no good row: {quarantine.describe() or 'it is empty'}. "
                f"See {str(quarantine.path)!r}; mend it or leave it out"
            )


def _clean_all(
    job: _Job, row: Row | Unreadable, number: int, quarantine: Quarantine
) -> Iterator[Canonical]:
    label = job.opened.label
    if isinstance(row, Unreadable):
        quarantine.reject(label, number, "line is no record", row.text)
        return
    try:
        cleaners = job.convert(row)
    except BadRow as error:
        quarantine.reject(label, number, str(error), row)
        return
    for clean in cleaners:
        try:
            yield clean()
        except BadRow as error:
            quarantine.reject(label, number, str(error), row)


def _draw(rows: Iterable[Canonical], limits: IngestLimits) -> Iterator[Canonical]:
    """Yields all rows, or of each source those with the smallest hashes, in their old order."""
    if limits.max_rows_per_source is None:
        yield from rows
        return
    heaps: dict[str, list[tuple[float, int, Canonical]]] = {}
    for position, row in enumerate(rows):
        heap = heaps.setdefault(row["source"], [])
        # The heap's head is the largest hash kept, the first to go.
        item = (-uniform(limits.seed, "draw", row["row_id"]), position, row)
        if len(heap) < limits.max_rows_per_source:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    kept = (item for heap in heaps.values() for item in heap)
    yield from (row for _, _, row in sorted(kept, key=lambda item: item[1]))


# Writing


def _ingest(
    jobs: Sequence[_Job],
    path: Path,
    schema: pa.Schema,
    limits: IngestLimits,
    declared: Mapping[str, RatingMap],
) -> Ingested:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with Quarantine(path.with_name(f"{path.stem}.quarantine.jsonl")) as quarantine:
            rows = _draw(with_row_ids(_good_rows(jobs, quarantine), schema), limits)
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                num_rows, observed = _store(rows, schema, writer)
                maps = complete_maps(observed, declared)
                writer.add_key_value_metadata(maps_metadata(maps))
            quarantine.check_share(limits.max_quarantine_share)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Ingested(path, quarantine.path, num_rows, quarantine.reasons, observed, maps)


def _store(
    rows: Iterable[Canonical], schema: pa.Schema, writer: pq.ParquetWriter
) -> tuple[Counter[str], dict[str, Observed]]:
    """Writes the rows and returns their number by source and what was seen of each objective."""
    objectives = schema.names[len(RATING_ROW) :] if "text_id" in schema.names else []
    num_rows: Counter[str] = Counter()
    observed = {name: Observed() for name in objectives}
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_ROWS)):
        table: Any = pa.Table.from_pylist(batch, schema=schema)
        writer.write_table(table)
        num_rows.update(row["source"] for row in batch)
        for name in objectives:
            observed[name] = observed[name].extend(table[name])
    return num_rows, observed
