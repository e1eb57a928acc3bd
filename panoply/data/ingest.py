"""Ingestion: files in any known layout become one canonical Parquet file and a quarantine file.

Rows stream from the readers through the adapters and checks to the file, so memory does not grow
with the texts (only a digest of each row is stored, to number repeated rows, and with
`max_rows_per_source` the rows drawn so far). The file appears under its name when it is complete.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.data_file import Unreadable
from panoply.data.formats import BATCH_ROWS
from panoply.data.layouts import pair_layout, rating_layout
from panoply.data.objectives import (
    Observed,
    complete_maps,
    maps_metadata,
    merge_scales,
    objective_name,
)
from panoply.data.parse import source_of
from panoply.data.quarantine import BadRow, Quarantine
from panoply.data.ratings import RatingMap
from panoply.data.read import Input, Opened, open_inputs
from panoply.data.repeats import Repeats
from panoply.data.rows import Raw, RawPair, RawRating, Row
from panoply.data.schema import PAIRS, RATING_ROW, Prompt, ratings_schema, uniform
from panoply.data.sources import columns_unrated, columns_unread, files_read, sources_of
from panoply.data.validate import Canonical, clean_pair, clean_rating, with_row_ids
from panoply.files import whole_file

Refusal: TypeAlias = Callable[[Prompt], str]
"""The reason why a model's template cannot write a prompt, empty where it can; of a renderer."""


@dataclass(frozen=True)
class IngestLimits:
    """Limits on the rows taken from a source and on the share of bad rows.

    Raises:
        ValueError: a value is out of its range.
    """

    max_rows_per_source: int | None = None
    """Most rows taken of a source, drawn by hash; None takes all."""
    max_quarantine_share: float = 0.2
    """Largest share of bad rows; a larger one stops the ingestion."""
    seed: int = 0
    """Seed of the draw under `max_rows_per_source`."""

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
    """Files that an ingestion wrote, with counts of their rows."""

    path: Path
    """The canonical Parquet file."""
    quarantine: Path
    """One JSON line per bad row: file, row (from 1), reason, excerpt."""
    num_rows: Mapping[str, int]
    """Rows written, by source."""
    num_quarantined: Mapping[str, int]
    """Bad rows, by reason."""
    objectives: Mapping[str, Observed]
    """Number and range of the ratings by objective; empty for pairs."""
    maps: Mapping[str, RatingMap]
    """Rating maps, declared or inferred; none for an objective without two distinct ratings."""
    num_ties: int = 0
    """Pairs of responses that are ranked alike, which are left out."""
    declared: frozenset[str] = frozenset()
    """Objectives whose scale was named or published, and not inferred from the ratings."""
    repeats: Repeats = field(default_factory=Repeats)
    """Repeated and contradicting rows, which stay."""
    notes: tuple[str, ...] = ()
    """Sentences on columns that were not taken as they might have been."""


@dataclass(frozen=True)
class _Job(Generic[Raw]):
    """One opened file, with the two steps from its rows to canonical rows."""

    opened: Opened
    adapt: Callable[[Row], list[Raw]]
    clean: Callable[[Raw], Canonical]
    """Checks each raw row by itself, so that a bad one does not take its siblings along."""


def ingest_pairs(
    inputs: Sequence[Input],
    out: Path,
    limits: IngestLimits | None = None,
    refusal: Refusal | None = None,
) -> Ingested:
    """Writes `pairs.parquet` (columns `schema.PAIRS`) and `pairs.quarantine.jsonl` into `out`.

    Args:
        inputs: the data.
        out: folder of the two files.
        limits: on rows and on the share of bad ones.
        refusal: of a model's template; a row that it refuses goes to quarantine.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input is damaged or in no known layout, holds no good row, or too many rows
            are bad.
    """
    jobs: list[_Job[RawPair]] = []
    files = open_inputs(inputs)
    notes = files_read(files)
    for opened in files:
        with _naming(opened):
            layout = pair_layout(opened.columns)
            source, _ = sources_of(opened, layout, notes)
            notes += columns_unread(opened, layout)
        jobs.append(_Job(opened, layout.adapt, partial(_clean_pair, source=source)))
    path = Path(out) / "pairs.parquet"
    ingested = _ingest(jobs, path, PAIRS, limits or IngestLimits(), {}, refusal)
    return replace(ingested, notes=tuple(notes))


def ingest_ratings(
    inputs: Sequence[Input],
    out: Path,
    limits: IngestLimits | None = None,
    refusal: Refusal | None = None,
) -> Ingested:
    """Writes `ratings.parquet` (`schema.ratings_schema`) and `ratings.quarantine.jsonl`.

    Objectives are named "<source>-<attribute>"; ratings stay in the raw scale. The map of each to
    [0, 1] is written into the file, see `objectives.read_maps`. Arguments as of `ingest_pairs`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input is damaged or in no known layout, holds no good row, or too many rows
            are bad; a scale is named for an unknown attribute or contradicts another.
    """
    jobs: list[_Job[RawRating]] = []
    declared: dict[str, RatingMap] = {}
    objectives: dict[str, None] = {}  # an ordered set
    files = open_inputs(inputs)
    notes = files_read(files)
    for opened in files:
        with _naming(opened):
            layout = rating_layout(opened.columns, opened.origin.attributes)
            source, sources = sources_of(opened, layout, notes)
            notes += columns_unrated(opened, layout)
            names: dict[str, dict[str, str]] = {}
            attributes: dict[str, str] = {}
            for name in sources:
                names[name] = {a: objective_name(name, a, sources) for a in layout.attributes}
                attributes |= {objective: a for a, objective in names[name].items()}
            declared |= merge_scales(attributes, layout.scales, opened.origin.scales, declared)
        objectives |= dict.fromkeys(attributes)
        clean = partial(_clean_rating, source=source, names=names, scales=declared)
        jobs.append(_Job(opened, layout.adapt, clean))
    path = Path(out) / "ratings.parquet"
    schema = ratings_schema(tuple(objectives))
    ingested = _ingest(jobs, path, schema, limits or IngestLimits(), declared, refusal)
    return replace(ingested, notes=tuple(notes))


# Opening and naming


@contextmanager
def _naming(opened: Opened) -> Generator[None]:
    """Puts the file's name in front of an error about its layout."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{opened.label}: {error}") from error


# Rows


def _clean_pair(raw: RawPair, source: str | None) -> Canonical:
    return clean_pair(raw, source or _row_source(raw))


def _clean_rating(
    raw: RawRating,
    source: str | None,
    names: Mapping[str, Mapping[str, str]],
    scales: Mapping[str, RatingMap],
) -> Canonical:
    name = source or _row_source(raw)
    return clean_rating(raw, name, names[name], scales)


def _row_source(raw: RawPair | RawRating) -> str:
    if name := source_of(raw.source):
        return name
    raise BadRow("missing source")


def _good_rows(
    jobs: Iterable[_Job[Raw]], quarantine: Quarantine, refusal: Refusal | None
) -> Iterator[Canonical]:
    for job in jobs:
        num_before = quarantine.num_good
        for number, row in enumerate(job.opened.rows(None), start=1):
            for canonical in _clean_all(job, row, number, quarantine, refusal):
                quarantine.num_good += 1
                yield canonical
        if quarantine.num_good == num_before:
            raise ValueError(
                f"{job.opened.label} holds no good row: {quarantine.describe() or 'it is empty'}. "
                f"See {str(quarantine.path)!r}; mend it or leave it out"
            )


def _clean_all(
    job: _Job[Raw],
    row: Row | Unreadable,
    number: int,
    quarantine: Quarantine,
    refusal: Refusal | None,
) -> Iterator[Canonical]:
    """Yields the good rows that a row of a file holds; bad ones go to quarantine."""
    label = job.opened.label
    if isinstance(row, Unreadable):
        quarantine.reject(label, number, row.reason, row.text)
        return
    try:
        raws = job.adapt(row)
    except BadRow as error:
        quarantine.reject(label, number, str(error), row)
        return
    for raw in raws:
        if isinstance(raw, RawPair) and raw.is_tie:
            quarantine.num_ties += 1
            continue
        try:
            canonical = job.clean(raw)
            if refusal and (reason := refusal(canonical["prompt"])):
                raise BadRow(reason)
        except BadRow as error:
            quarantine.reject(label, number, str(error), row)
        else:
            yield canonical


def _draw(rows: Iterable[Canonical], limits: IngestLimits) -> Iterator[Canonical]:
    """Yields all rows, or of each source those with the smallest hashes, in their old order."""
    if limits.max_rows_per_source is None:
        yield from rows
        return
    heaps: dict[str, list[tuple[float, int, Canonical]]] = {}
    for position, row in enumerate(rows):
        heap = heaps.setdefault(row["source"], [])
        # Hashes are negated, so that the heap's head is the largest one, the first to go.
        item = (-uniform(limits.seed, "draw", row["row_id"]), position, row)
        if len(heap) < limits.max_rows_per_source:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    for _, _, row in sorted(chain(*heaps.values()), key=lambda item: item[1]):
        yield row


# Writing


def _ingest(
    jobs: Sequence[_Job[Raw]],
    path: Path,
    schema: pa.Schema,
    limits: IngestLimits,
    declared: Mapping[str, RatingMap],
    refusal: Refusal | None,
) -> Ingested:
    path.parent.mkdir(parents=True, exist_ok=True)
    quarantine_file = path.with_name(f"{path.stem}.quarantine.jsonl")
    with Quarantine(quarantine_file) as quarantine, whole_file(path) as partial_file:
        repeats = Repeats()
        rows = _draw(
            with_row_ids(repeats.count(_good_rows(jobs, quarantine, refusal)), schema), limits
        )
        with pq.ParquetWriter(partial_file, schema, compression="zstd") as writer:
            num_rows, observed = _write_rows(rows, schema, writer)
            maps = complete_maps(observed, declared)
            writer.add_key_value_metadata(maps_metadata(maps))
        quarantine.check_share(limits.max_quarantine_share)
    return Ingested(
        path,
        quarantine.path,
        num_rows,
        quarantine.reasons,
        observed,
        maps,
        quarantine.num_ties,
        frozenset(declared),
        repeats,
    )


def _write_rows(
    rows: Iterable[Canonical], schema: pa.Schema, writer: pq.ParquetWriter
) -> tuple[Counter[str], dict[str, Observed]]:
    """Writes rows; returns their number by source, and number and range of each objective."""
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
