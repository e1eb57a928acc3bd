"""The feature cache: pooled hidden states in immutable Parquet shards.

The shards lie under a key that names everything that features depend on.

A shard is written once, whole, under a name that is the hash of the ids in it. Rerunning pays
only for ids that no shard holds. Rows are found by id, never by position.
"""

from __future__ import annotations

import io
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from panoply.data.schema import digest
from panoply.files import reading, whole_file
from panoply.types import Bools, Floats, Ints

Kind: TypeAlias = Literal["texts", "prompts"]
VERSION = 2
"""Raised when the meaning of stored features changes."""
PART_ROWS = 8192
"""Rows of an array that are read at once."""
KEPT_BYTES = 256 * 2**20
"""Features of shards that a process keeps in memory, for those that read the same shards next."""


def open_store(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system and path of a local path or a URI (file, s3, gs)."""
    if urlparse(uri).scheme in ("", "file"):
        path = Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri)
        return pafs.LocalFileSystem(), str(path.expanduser().absolute())
    return pafs.FileSystem.from_uri(uri)


@dataclass(frozen=True, slots=True)
class Places:
    """Places of ids: number in `shards` and row in that shard, -1 where no shard holds the id."""

    shards: tuple[str, ...]
    shard_N: Ints
    row_N: Ints

    def __getitem__(self, rows: Ints | Bools) -> Places:
        """Returns the places of some of the ids."""
        return Places(self.shards, self.shard_N[rows], self.row_N[rows])

    @property
    def missing_N(self) -> Bools:
        """Ids that still have to be embedded."""
        return self.shard_N < 0


class ShardCache:
    """Features of the shards that were read last, as many as `max_bytes` hold; for any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.kept = OrderedDict[Hashable, Floats]()
        self.lock = Lock()

    def get(self, key: Hashable, read: Callable[[], Floats]) -> Floats:
        """Returns what is kept under a key, or reads it; nobody may write to it."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        features = read()
        with self.lock:
            if key not in self.kept:
                self.kept[key] = features
                self.num_bytes += features.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self.kept.popitem(last=False)[1].nbytes
        return features


KEPT_SHARDS = ShardCache(KEPT_BYTES)


class FeatureStore:
    """Features under one key; `texts` carry `last_L` and `mean_L`, `prompts` carry `gate_L`."""

    def __init__(self, root: str, key: Mapping[str, Any]) -> None:
        self.key = {**key, "version": VERSION}
        name = digest(json.dumps(self.key, sort_keys=True))
        self.uri = f"{root.rstrip('/')}/{name}"
        self.fs, self.path = open_store(self.uri)
        self.fs.create_dir(self.path, recursive=True)
        self._write(f"{self.path}/key.json", json.dumps(self.key, indent=1).encode())

    def _write(self, path: str, content: bytes) -> None:
        """Writes a file whole or not at all."""
        if isinstance(self.fs, pafs.LocalFileSystem):
            with whole_file(Path(path)) as written:
                written.write_bytes(content)
            return
        partial = f"{path}.{secrets.token_hex(8)}.part"
        with self.fs.open_output_stream(partial) as out:
            out.write(content)
        self.fs.move(partial, path)

    def write(self, kind: Kind, ids: Sequence[str], columns: Mapping[str, Floats]) -> str:
        """Writes one shard; returns its name. Columns are `[N, D]`."""
        arrays: list[pa.Array] = [pa.array(ids, pa.string())]
        for values in columns.values():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        table = pa.Table.from_arrays(arrays, names=["id", *columns])
        buffer = io.BytesIO()
        # Hidden states do not compress; plain pages read fastest.
        pq.write_table(
            table, buffer, compression="none", use_dictionary=False, write_page_checksum=True
        )
        name = f"{kind}-{digest(*ids)}.parquet"
        self._write(f"{self.path}/{name}", buffer.getvalue())
        return name

    def shards(self, kind: Kind) -> list[str]:
        """Names of the shards, sorted."""
        listed = self.fs.get_file_info(pafs.FileSelector(self.path))
        names = [info.base_name for info in listed]
        return sorted(n for n in names if n.startswith(f"{kind}-") and n.endswith(".parquet"))

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """Reads columns of one shard.

        Raises:
            ValueError: the shard is damaged.
        """
        path = f"{self.path}/{shard}"
        with reading(Path(path)), self.fs.open_input_file(path) as file:
            return pq.read_table(file, columns=list(columns), page_checksum_verification=True)

    def find(self, kind: Kind, ids: Sequence[str]) -> Places:
        """Finds ids among the shards; an id that several shards hold is taken from the first."""
        place: dict[str, tuple[int, int]] = {}
        shards = tuple(self.shards(kind))
        for number, shard in enumerate(shards):
            for row, name in enumerate(self.read(shard, ["id"])["id"].to_pylist()):
                place.setdefault(name, (number, row))
        places = [place.get(name, (-1, -1)) for name in ids]
        place_N2 = np.array(places, dtype=np.int64).reshape(-1, 2)
        return Places(shards, place_N2[:, 0], place_N2[:, 1])

    def features(self, kind: Kind, ids: Iterable[str], columns: tuple[str, ...]) -> StoredFeatures:
        """Returns the features of some ids; nothing is read yet."""
        return StoredFeatures(self, columns, self.find(kind, list(ids)))

    def gather(self, places: Places, columns: Sequence[str]) -> Iterator[tuple[Ints, Floats]]:
        """Yields, shard by shard, positions in `places` and their features `[n, F]`.

        Several columns are set side by side. One shard is in memory at a time.

        Raises:
            KeyError: an id that no shard holds.
        """
        num_missing = int(places.missing_N.sum())
        if num_missing:
            raise KeyError(f"{num_missing} of {len(places.shard_N)} ids are missing")
        order = np.argsort(places.shard_N, kind="stable")
        bounds = np.searchsorted(places.shard_N[order], np.arange(len(places.shards) + 1))
        for number, name in enumerate(places.shards):
            rows = order[bounds[number] : bounds[number + 1]]
            if len(rows):
                yield rows, self.matrix(name, tuple(columns))[places.row_N[rows]]

    def matrix(self, shard: str, columns: tuple[str, ...]) -> Floats:
        """Returns columns of one shard side by side, `[N, F]`; not to be written to.

        Raises:
            ValueError: the shard is damaged.
        """

        def read() -> Floats:
            table = self.read(shard, columns)
            return np.hstack([as_matrix(table[column]) for column in columns])

        # A shard never changes, but for one that was deleted since it was damaged.
        file = self.fs.get_file_info(f"{self.path}/{shard}")
        return KEPT_SHARDS.get((self.uri, shard, columns, file.mtime_ns, file.size), read)


class FeatureRows(Protocol):
    """Feature vectors of N rows, read part by part: memory does not grow with N."""

    def parts(self) -> Iterator[tuple[Ints, Floats]]:
        """Yields rows and their features `[n, F]`; every row comes once."""
        ...


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Features of some ids in a store; columns stand side by side."""

    store: FeatureStore
    columns: tuple[str, ...]
    places: Places

    def parts(self) -> Iterator[tuple[Ints, Floats]]:
        """Yields rows and their features, shard by shard."""
        return self.store.gather(self.places, self.columns)

    def read(self, file: Path | None = None) -> Floats:
        """Returns all features `[N, F]` in the order of the ids.

        Args:
            file: where they are written and memory-mapped; None: they are held in memory.
        """
        whole: Floats = np.empty((0, 0), dtype=np.float32)
        for rows, x in self.parts():
            if not whole.size:
                shape = (len(self.places.shard_N), x.shape[1])
                whole = np.empty(shape, np.float32) if file is None else _map_new(file, shape)
            whole[rows] = x
        if isinstance(whole, np.memmap):
            whole.flush()
        return whole


@dataclass(frozen=True, slots=True)
class ArrayFeatures:
    """Features in an array, which may be a memory-mapped file."""

    x_NF: Floats

    def parts(self) -> Iterator[tuple[Ints, Floats]]:
        """Yields rows and their features, `PART_ROWS` at a time."""
        for start in range(0, len(self.x_NF), PART_ROWS):
            rows = np.arange(start, min(start + PART_ROWS, len(self.x_NF)))
            yield rows, self.x_NF[rows]


def _map_new(file: Path, shape: tuple[int, int]) -> Floats:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)


def as_matrix(column: pa.ChunkedArray) -> Floats:
    """Returns a FixedSizeList column as `[N, D]`."""
    array = column.combine_chunks()
    width = array.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
