"""Files that hold rows: where they are, how they open, and what a row of them may be."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.fs as pafs

from panoply.data.rows import Row

LINES = (".jsonl", ".ndjson")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
TEXTS = (*LINES, ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", ".arrow", ".feather", *TEXTS)
"""Endings of files that are read; those of text formats may be followed by one of COMPRESSIONS."""


@dataclass(frozen=True)
class Unreadable:
    """A line of a file that is no record."""

    text: str
    reason: str = "line is no record"


Rows: TypeAlias = Iterator[Row | Unreadable]
ReadRows: TypeAlias = Callable[[list[str] | None], Rows]
"""Reads the rows, with at least the columns in the list; None reads all columns."""


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
        name = self.path.lower()
        for ending in COMPRESSIONS:
            if name.endswith(tuple(f"{text}{ending}" for text in TEXTS)):
                name = name.removesuffix(ending)
        return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")

    def open_file(self) -> pa.NativeFile:
        """Opens the file for reading anywhere in it."""
        return self.filesystem.open_input_file(self.path)

    def open_text(self) -> IO[bytes]:
        """Opens the decompressed content of a text format, for reading from its beginning."""
        name = self.path.lower()
        codec = next((c for end, c in COMPRESSIONS.items() if name.endswith(end)), None)
        stream = self.filesystem.open_input_stream(self.path, compression=codec)
        return io.BufferedReader(cast("Any", stream), 1 << 20)


class Unfit(ValueError):
    """A file that is whole, and holds something else than its ending says."""

    def __init__(self, file: DataFile, reason: str) -> None:
        super().__init__(f"{file.label!r} cannot be read: {reason}")


def damaged(file: DataFile, error: Exception) -> ValueError:
    """Returns the error for a file that its reader cannot read to the end."""
    return ValueError(f"{file.label!r} is damaged or cut short ({error}); fetch or write it again")
