"""Formats of files: Parquet, Arrow, JSON, JSON lines, CSV, as they are or compressed, in batches.

Opening reads names and types of the columns, and in a text format the whole file once, since a
rating may first appear late in it. A JSON array has to be read whole; all else is streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeAlias

import pyarrow as pa
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from panoply.data.data_file import COMPRESSIONS, SUFFIXES, DataFile, ReadRows, Rows, Unfit, damaged
from panoply.data.parquet import row_batches
from panoply.data.text_formats import csv_columns, csv_rows, json_columns, json_rows

BATCH_ROWS = 1024
POINTER_SIZE = 1024
"""Bytes below which the pointers of git's large-file extension stay."""
Batches: TypeAlias = Callable[[list[str] | None], Iterator[pa.RecordBatch]]


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
    size = file.filesystem.get_file_info(file.path).size
    if size == 0:
        raise ValueError(f"{file.label!r} is empty; write it again or leave it out")
    if size < POINTER_SIZE:
        _check_no_pointer(file)
    match file.suffix:
        case ".parquet":
            columns, rows = _open_parquet(file)
        case ".arrow" | ".feather":
            columns, rows = _open_arrow(file)
        case ".csv" | ".tsv":
            rows = partial(csv_rows, file)
            columns = csv_columns(rows(None))
        case _:
            rows = partial(json_rows, file)
            columns = json_columns(rows(None))
    if not columns:
        raise ValueError(f"{file.label!r} holds no rows; write it again or leave it out")
    return columns, rows


def _check_no_pointer(file: DataFile) -> None:
    with file.filesystem.open_input_stream(file.path, compression=None) as opened:
        if opened.read(POINTER_SIZE).startswith(b"version https://git-lfs"):
            raise Unfit(
                file, "it is a pointer that git leaves in place of a large file: run `git lfs pull`"
            )


# Arrow


def arrow_columns(schema: pa.Schema, label: str) -> dict[str, bool]:
    """Returns whether each column of a schema holds numbers, by name.

    Raises:
        ValueError: two columns have one name; the sentence begins with `label`.
    """
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(f"{label!r} has two columns {twice[0]!r}: give each a name of its own")
    return {column.name: _is_number(column.type) for column in schema}


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def rows_of_batches(batches: Batches, columns: list[str] | None) -> Rows:
    """Yields the rows of Arrow batches."""
    for batch in batches(columns):
        yield from _with_texts(batch).to_pylist()


def _with_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a batch with texts in place of bytes, as which some writers of Parquet store them."""
    for i, column in enumerate(batch.schema):
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            with suppress(pa.ArrowInvalid):  # no UTF-8: an image, say
                batch = batch.set_column(i, column.name, batch.column(i).cast(pa.string()))
    return batch


def _open_parquet(file: DataFile) -> tuple[Mapping[str, bool], ReadRows]:
    try:
        with file.open_file() as opened, pq.ParquetFile(opened) as parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(file, error) from error
    columns = arrow_columns(schema, file.label) if num_rows else {}
    return columns, partial(rows_of_batches, partial(_parquet_batches, file))


def _parquet_batches(file: DataFile, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    try:
        with file.open_file() as opened, pq.ParquetFile(opened) as parquet:
            yield from row_batches(parquet, BATCH_ROWS, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(file, error) from error


def _open_arrow(file: DataFile) -> tuple[Mapping[str, bool], ReadRows]:
    batches = partial(_arrow_batches, file)
    first = next(batches(None), None)
    columns = {} if first is None else arrow_columns(first.schema, file.label)
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
        raise damaged(file, error) from error
