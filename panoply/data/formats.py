"""Formats of files: Parquet, Arrow, JSON, JSON lines, CSV, as they are or compressed, in batches.

Opening reads names and types of the columns, and in a text format the whole file once, since a
rating may first appear late in it. A JSON array has to be read whole; all else is streamed.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from panoply.data.parse import NOT_RATED
from panoply.data.rows import Row

BATCH_ROWS = 1024
LINES = (".jsonl", ".ndjson")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
TEXTS = (*LINES, ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", ".arrow", ".feather", *TEXTS)
"""Endings of files that are read; those of text formats may be followed by one of COMPRESSIONS."""
LONGEST_LINE = 64 * 2**20
"""Maximum bytes of a line: a megabyte of a compressed file may become a line of a gigabyte."""
LONGEST_DOCUMENT = 2 * 2**30
"""Maximum bytes of a file that is one JSON value, and so is read whole."""
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Unreadable:
    """A line of a file that is no record."""

    text: str


Rows: TypeAlias = Iterator[Row | Unreadable]
ReadRows: TypeAlias = Callable[[list[str] | None], Rows]
"""Reads the rows, with at least the columns in the list; None reads all columns."""
Batches: TypeAlias = Callable[[list[str] | None], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class DataFile:
    """A file with its file system, local or remote."""

    label: str
    """Path or URI as messages show it."""
    filesystem: pafs.FileSystem
    path: str
    """Path inside the file system."""

    @property
    def suffix(self) -> str:
        """The ending of the file's format, without that of a compression; empty if unknown."""
        name = self.path
        for ending in COMPRESSIONS:
            if name.endswith(tuple(f"{text}{ending}" for text in TEXTS)):
                name = name.removesuffix(ending)
        return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")

    def open_file(self) -> pa.NativeFile:
        """Opens the file for reading anywhere in it."""
        return self.filesystem.open_input_file(self.path)

    def open_text(self) -> IO[bytes]:
        """Opens the decompressed content of a text format, for reading from its beginning."""
        codec = next((c for end, c in COMPRESSIONS.items() if self.path.endswith(end)), None)
        stream = self.filesystem.open_input_stream(self.path, compression=codec)
        return io.BufferedReader(cast("Any", stream), 1 << 20)


def read_format(file: DataFile) -> tuple[Mapping[str, bool], ReadRows]:
    """Returns whether each column holds numbers, by name, and the reader of the rows.

    Raises:
        ValueError: the file is empty, damaged, holds no rows, or is of an unknown format.
    """
    if not file.suffix:
        raise ValueError(
            f"{file.label!r} ends in none of {', '.join(SUFFIXES)} (text formats also compressed: "
            f"{', '.join(COMPRESSIONS)}); convert it"
        )
    if file.filesystem.get_file_info(file.path).size == 0:
        raise ValueError(f"{file.label!r} is empty; write it again or leave it out")
    match file.suffix:
        case ".parquet":
            columns, rows = _open_parquet(file)
        case ".arrow" | ".feather":
            columns, rows = _open_arrow(file)
        case ".csv" | ".tsv":
            rows = partial(_csv_rows, file)
            columns = _csv_columns(rows(None))
        case _:
            rows = partial(_json_rows, file)
            columns = _json_columns(rows(None))
    if not columns:
        raise ValueError(f"{file.label!r} holds no rows; write it again or leave it out")
    return columns, rows


def _damaged(file: DataFile, error: Exception) -> ValueError:
    return ValueError(f"{file.label!r} is damaged or cut short ({error}); fetch or write it again")


# Arrow


def arrow_columns(schema: pa.Schema) -> dict[str, bool]:
    """Returns whether each column of a schema holds numbers, by name."""
    return {column.name: _is_number(column.type) for column in schema}


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def rows_of_batches(batches: Batches, columns: list[str] | None) -> Rows:
    """Yields the rows of Arrow batches."""
    for batch in batches(columns):
        yield from batch.to_pylist()


def _open_parquet(file: DataFile) -> tuple[Mapping[str, bool], ReadRows]:
    try:
        with file.open_file() as opened, pq.ParquetFile(opened) as parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from error
    columns = arrow_columns(schema) if num_rows else {}
    return columns, partial(rows_of_batches, partial(_parquet_batches, file))


def _parquet_batches(file: DataFile, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    try:
        with file.open_file() as opened, pq.ParquetFile(opened) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from error


def _open_arrow(file: DataFile) -> tuple[Mapping[str, bool], ReadRows]:
    batches = partial(_arrow_batches, file)
    first = next(batches(None), None)
    columns = {} if first is None else arrow_columns(first.schema)
    return columns, partial(rows_of_batches, batches)


def _arrow_batches(file: DataFile, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Yields the batches with rows of the Arrow file format (Feather) or stream format."""
    try:
        with file.open_file() as opened:
            is_file = opened.read(6) == b"ARROW1"
            opened.seek(0)
            reader = paipc.open_file(opened) if is_file else paipc.open_stream(opened)
            stored = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in stored:
                narrow = batch if columns is None else batch.select(columns)
                for start in range(0, narrow.num_rows, BATCH_ROWS):
                    yield narrow.slice(start, BATCH_ROWS)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from error


# JSON


def _json_rows(file: DataFile, columns: list[str] | None) -> Rows:
    try:
        with file.open_text() as text:
            start = text.peek(1)[:3]  # pyright: ignore[reportAttributeAccessIssue]
            if start[:2] in UTF16_MARKS:
                raise ValueError("it is UTF-16; save it as UTF-8")
            if start == UTF8_MARK:
                text.read(3)
            lines = _lines(text)
            first = next(lines, b"")
            if first.startswith(b"[") or _opens_object(first, file.suffix):
                whole = first + text.read(LONGEST_DOCUMENT)
                if len(whole) > LONGEST_DOCUMENT:
                    raise ValueError(
                        f"it is one value of more than {LONGEST_DOCUMENT:,} bytes; write one "
                        "record a line"
                    )
                yield from (_record(value) for value in _records(json.loads(whole)))
            else:
                yield _line(first)
                yield from map(_line, lines)
    except RecursionError as error:
        raise _damaged(file, ValueError("it is nested too deeply")) from error
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(file, error) from error


def _lines(text: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines that are not blank, from their first character on.

    Of one that is longer than any record, its beginning.
    """
    while line := text.readline(LONGEST_LINE + 1):
        if line := line.lstrip():
            yield line


def _opens_object(line: bytes, suffix: str) -> bool:
    """Returns whether a line of a `.json` file is the beginning of an object over several lines."""
    if suffix != ".json" or not line.startswith(b"{"):
        return False
    return len(line) > LONGEST_LINE or isinstance(_line(line), Unreadable)


def _records(value: object) -> list[object]:
    """Returns the records of a whole JSON document: a list, or an object that holds one list.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, list):
        return cast("list[object]", value)
    values = cast("Mapping[str, object]", value)
    lists = [held for held in values.values() if isinstance(held, list)]
    if len(lists) != 1:
        raise ValueError("it is an object, not a list of records; write one record a line")
    return cast("list[object]", lists[0])


def _line(line: bytes) -> Row | Unreadable:
    """Returns the record of a line.

    Raises:
        ValueError: it is longer than any record.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line has more than {LONGEST_LINE:,} bytes")
    try:
        return _record(json.loads(line))
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return Unreadable(line.decode(errors="replace"))


def _record(value: object) -> Row | Unreadable:
    return cast("Row", value) if isinstance(value, dict) else Unreadable(json.dumps(value))


def _json_columns(rows: Rows) -> dict[str, bool]:
    columns: dict[str, bool] = {}
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        for name, value in row.items():
            if not columns.get(name):
                columns[name] = isinstance(value, (bool, int, float))
    return columns


# CSV


def _csv_rows(file: DataFile, columns: list[str] | None) -> Rows:
    """Yields the rows by the names in the first line; all values are texts, an empty one None."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if file.suffix == ".tsv" else ","
    try:
        # Bytes that are no UTF-8 become surrogates, which quarantine their row.
        with file.open_text() as content, io.TextIOWrapper(
            content, "utf-8-sig", "surrogateescape", newline=""
        ) as text:  # fmt: skip
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise ValueError(f"its first line names a column twice: {names}")
            for cells in reader:
                if len(cells) == len(names):
                    yield {n: cell or None for n, cell in zip(names, cells, strict=True)}
                elif cells:
                    yield Unreadable(delimiter.join(cells))
    except (OSError, csv.Error, ValueError) as error:
        raise _damaged(file, error) from error


def _csv_columns(rows: Rows) -> dict[str, bool]:
    """Finds the columns; those hold numbers where all that is not empty or "N/A" is a number."""
    has_number: dict[str, bool] = {}
    has_text: dict[str, bool] = {}
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        for name, value in row.items():
            is_text = has_text.setdefault(name, False)
            if value is None or is_text or str(value).strip() in NOT_RATED:
                continue
            has_text[name] = not _is_numeral(str(value))
            has_number[name] = True
    return {name: name in has_number and not text for name, text in has_text.items()}


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
