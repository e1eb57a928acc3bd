"""Readers of Parquet, JSONL, JSON, a folder of them, a hub name or a table, row by row.

Opening reads names and types only, so a wrong path or an unknown layout is an error before any row
is read. Rows come in batches from the file: memory does not grow with their number (except for a
JSON array, which has to be read whole).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.layouts import Row
from panoply.data.ratings import RatingMap

BATCH_ROWS = 1024
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_SOURCES = 64
FEW_SOURCES = 8
"""As many values are names of data sets even where each stands in one row alone."""
GENERIC_STEMS = ("train", "test", "validation", "val", "dev", "data")
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.\[\]:%+-]+))?")


@dataclass(frozen=True)
class Input:
    """Data to ingest, with its name and its rating scales."""

    data: str | Path | pa.Table
    """A file, a folder of files, a hub name "owner/name" or "owner/name:split", or a table."""
    name: str | None = None
    """Short name of the source. By default the rows' own `source` where it tells several data
    sets apart, else the name of the file."""
    scales: Mapping[str, RatingMap] = field(default_factory=dict[str, RatingMap])
    """Rating scales by attribute; without one, the published scale holds or one is inferred."""


@dataclass(frozen=True)
class Unreadable:
    """A line of a file that is no record."""

    text: str


Rows: TypeAlias = Iterator[Row | Unreadable]
Batches: TypeAlias = Callable[[list[str] | None], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Opened:
    """One file (or hub split, or table) whose columns are known and whose rows are not yet read."""

    label: str
    """Name of the file in messages and quarantine lines."""
    name: str | None
    """Short name of the source; None for a table, whose rows must name their source."""
    columns: Mapping[str, bool]
    """Whether the column holds numbers, by name."""
    rows: Callable[[list[str] | None], Rows]
    """Reads the rows, with at least the columns in the list; None reads all columns."""
    origin: Input

    def sources(self) -> tuple[str, ...]:
        """Returns the distinct values of the `source` column, sorted.

        Empty without that column, and where its values name rows and no data sets: more than
        MAX_SOURCES, or hardly fewer than rows.
        """
        names: set[str] = set()
        num_rows = 0
        if "source" not in self.columns:
            return ()
        for row in self.rows(["source"]):
            value = None if isinstance(row, Unreadable) else row.get("source")
            if isinstance(value, str) and value:
                names.add(value)
                num_rows += 1
            if len(names) > MAX_SOURCES:
                return ()
        are_ids = len(names) > FEW_SOURCES and 2 * len(names) > num_rows
        return () if are_ids else tuple(sorted(names))


def open_input(origin: Input) -> list[Opened]:
    """Opens an input: one file, each file of a folder, a split on the hub, or a table.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the input is empty, damaged, of an unknown kind, or the hub cannot be reached.
    """
    if not isinstance(origin.data, (str, Path)):
        label = f"table {origin.name}" if origin.name else "table"
        batches = partial(_table_batches, origin.data)
        return [_from_arrow(label, origin.name, origin.data.schema, batches, origin)]
    path = Path(origin.data).expanduser()
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES) and _is_data(f))
        if not files:
            raise ValueError(f"folder {str(path)!r} holds no file ending in {', '.join(SUFFIXES)}")
        return [_open_file(file, origin) for file in files]
    if path.is_file():
        return [_open_file(path, origin)]
    if isinstance(origin.data, str) and not origin.data.endswith(SUFFIXES):
        hub = HUB_NAME.fullmatch(origin.data)
        if hub and not origin.data.startswith("."):
            return [_open_hub(hub["name"], hub["split"] or "train", origin)]
    raise FileNotFoundError(
        f"{str(origin.data)!r} does not exist; give a file ({', '.join(SUFFIXES)}), a folder of "
        "them, or a hub name 'owner/name' or 'owner/name:split'"
    )


def _is_data(file: Path) -> bool:
    return not file.name.startswith(".") and not file.name.endswith("quarantine.jsonl")


def short_name(path: Path) -> str:
    """Returns the name of a file's source: its stem without shard numbers, else its folder's."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.name.split(".")[0])
    return path.resolve().parent.name if stem in GENERIC_STEMS else stem


def _open_file(path: Path, origin: Input) -> Opened:
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{str(path)!r} ends in none of {', '.join(SUFFIXES)}; convert it")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty; write it again or leave it out")
    if path.suffix == ".parquet":
        opened = _open_parquet(path, origin)
    else:
        rows = partial(_json_rows, path)
        columns = _json_columns(rows(None))
        opened = Opened(str(path), origin.name or short_name(path), columns, rows, origin)
    if not opened.columns:
        raise ValueError(f"{str(path)!r} holds no rows; write it again or leave it out")
    return opened


# Arrow: Parquet, hub and tables


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _from_arrow(
    label: str, name: str | None, schema: pa.Schema, batches: Batches, origin: Input
) -> Opened:
    columns = {column.name: _is_number(column.type) for column in schema}
    return Opened(label, name, columns, partial(_arrow_rows, batches), origin)


def _arrow_rows(batches: Batches, columns: list[str] | None) -> Rows:
    for batch in batches(columns):
        yield from batch.to_pylist()


def _table_batches(table: pa.Table, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    narrow = table if columns is None else table.select(columns)
    yield from narrow.to_batches(max_chunksize=BATCH_ROWS)


def _open_parquet(path: Path, origin: Input) -> Opened:
    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error
    if num_rows == 0:
        raise ValueError(f"{str(path)!r} holds no rows; write it again or leave it out")
    name = origin.name or short_name(path)
    return _from_arrow(str(path), name, schema, partial(_parquet_batches, path), origin)


def _parquet_batches(path: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{str(path)!r} is damaged or cut short ({error}); fetch or write it again")


def _open_hub(name: str, split: str, origin: Input) -> Opened:
    try:
        from datasets import load_dataset  # heavy, and not needed for local files
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError(
            f"hub name {name!r} needs the package `datasets`: run `pip install '.[hf]'` in a clone "
            "of Panoply, or name a local file"
        ) from error
    try:
        loaded = cast("Any", load_dataset(name, split=split))
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"{name!r} is no local path, and the hub could not be reached or does not hold it with "
            f"split {split!r} ({type(error).__name__}: {error}); a local file or folder works too"
        ) from error
    schema = loaded.features.arrow_schema
    batches = partial(_hub_batches, loaded)
    return _from_arrow(
        f"{name}:{split}", origin.name or name.split("/")[1].lower(), schema, batches, origin
    )


def _hub_batches(loaded: Any, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    narrow = loaded if columns is None else loaded.select_columns(columns)
    for table in narrow.with_format("arrow").iter(BATCH_ROWS):
        yield from table.to_batches()


# JSON


def _open_bytes(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _json_rows(path: Path, columns: list[str] | None) -> Rows:
    try:
        with _open_bytes(path) as file:
            is_marked = file.read(len(BOM_UTF8)) == BOM_UTF8
            file.seek(begin := len(BOM_UTF8) if is_marked else 0)
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            file.seek(begin)
            if start == b"[":
                yield from (_record(value) for value in json.load(file))
            else:
                yield from (_line(line) for line in file if line.strip())
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise _damaged(path, error) from error


def _line(line: bytes) -> Row | Unreadable:
    try:
        return _record(json.loads(line))
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
        return Unreadable(line.decode(errors="replace"))


def _record(value: object) -> Row | Unreadable:
    return cast("Row", value) if isinstance(value, dict) else Unreadable(json.dumps(value))


def _json_columns(rows: Rows) -> dict[str, bool]:
    """Finds all columns in one pass over the file: a rating may first appear late in it."""
    columns: dict[str, bool] = {}
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        for name, value in row.items():
            columns[name] = columns.get(name, False) or isinstance(value, (bool, int, float))
    return columns
