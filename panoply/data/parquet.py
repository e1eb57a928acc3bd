"""Rows of Parquet files of any size, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def row_batches(
    file: pq.ParquetFile, num_rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file in batches, one row group after the other.

    Arrow's own reader of all row groups keeps what it has read of the ones before.

    Args:
        file: opened for reading.
        num_rows: largest number of rows of a batch.
        columns: names of those that are read; None reads all.
    """
    names = None if columns is None else list(columns)
    for group in range(file.metadata.num_row_groups):
        yield from file.iter_batches(num_rows, row_groups=[group], columns=names)
