"""Inputs of a run: files, folders, patterns, URIs, hub names and tables, opened and named.

Opening reads names and types of columns, so a wrong path or an unknown layout is an error before
any row is read. Rows come in batches: memory does not grow with their number (except for a JSON
array, which has to be read whole).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from panoply.config.files import (
    FilesConfig,
    bounds_of_scales,
    names_of_columns,
    names_of_ratings,
)
from panoply.data.data_file import SUFFIXES, ReadRows, Rows, Unreadable
from panoply.data.formats import BATCH_ROWS, arrow_columns, read_format, rows_of_batches
from panoply.data.hub import HubName, open_hub
from panoply.data.locate import SourceName, find_files, source_name
from panoply.data.message_trees import (
    MESSAGE_COLUMNS,
    TREE_COLUMNS,
    holds_messages,
    trees_of,
)
from panoply.data.parse import source_of
from panoply.data.ratings import RatingMap

MAX_SOURCES = 64
FEW_SOURCES = 8
"""As many values are names of data sets even where each stands in one row alone."""


@dataclass(frozen=True)
class Input:
    """Data to ingest, with the names of its source and columns, and its rating scales."""

    data: str | Path | pa.Table
    """A file, a folder of files, a pattern such as "data/*.parquet", a URI, a hub name
    "owner/name/config:split@revision", or a table."""
    name: str | None = None
    """Short name of the source. By default the rows' own `source` where it tells data sets
    apart, else the name of the file."""
    scales: Mapping[str, RatingMap] = field(default_factory=dict[str, RatingMap])
    """Rating scales by attribute; without one, the published scale holds or one is inferred."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Columns of the file by the name of a known layout, where the file names them otherwise."""
    attributes: tuple[str, ...] = ()
    """Columns that are ratings; empty: all that hold numbers and are not known to be others."""


@dataclass(frozen=True)
class Opened:
    """One file (or hub split, or table) whose columns are known and whose rows are not yet read."""

    label: str
    """Name of the file in messages and quarantine lines."""
    name: str | None
    """Short name of the source; None for a table, whose rows must name their source."""
    columns: Mapping[str, bool]
    """Whether the column holds numbers, by name."""
    rows: ReadRows
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
            if name := "" if isinstance(row, Unreadable) else source_of(row.get("source")):
                names.add(name)
                num_rows += 1
            if len(names) > MAX_SOURCES:
                return ()
        are_ids = len(names) > FEW_SOURCES and 2 * len(names) > num_rows
        return () if are_ids else tuple(sorted(names))


def named_inputs(files: Sequence[str], config: FilesConfig) -> list[Input]:
    """Returns the inputs of a command, with the names that its flags give."""
    columns = names_of_columns(config.columns)
    names: Sequence[str | None] = config.source or [None]
    if len(names) == 1:
        names = [names[0]] * len(files)
    return [Input(file, name, columns=columns) for file, name in zip(files, names, strict=True)]


def rating_inputs(
    files: Sequence[str], config: FilesConfig, *, columns: Sequence[str], scales: Sequence[str]
) -> list[Input]:
    """Returns the inputs of rating files, with the names, columns and scales that flags give."""
    maps = {name: RatingMap(*ends) for name, ends in bounds_of_scales(scales).items()}
    attributes, renamed = names_of_ratings(columns)
    named: list[Input] = []
    for origin in named_inputs(files, config):
        all_columns = {**origin.columns, **renamed}
        named.append(replace(origin, scales=maps, attributes=attributes, columns=all_columns))
    return named


def open_inputs(inputs: Sequence[Input]) -> list[Opened]:
    """Opens all inputs of a run; files of one name in different folders are named apart.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no input; one is empty, damaged, of an unknown kind, or the hub cannot
            be reached; or no file has a column that `Input.columns` names.
    """
    if not inputs:
        raise ValueError("no input was given; name at least one file, folder, hub name or table")
    named: list[tuple[Opened, SourceName]] = []
    for origin in inputs:
        named += _open_input(origin)
    _check_columns([opened for opened, _ in named])
    return [_with_trees(_renamed(opened)) for opened in _named_apart(named)]


def open_input(origin: Input) -> list[Opened]:
    """Opens one input: a file, each file of a folder, a split on the hub, or a table.

    Raises:
        FileNotFoundError, ValueError: see `open_inputs`.
    """
    return open_inputs([origin])


def _open_input(origin: Input) -> list[tuple[Opened, SourceName]]:
    if not isinstance(origin.data, (str, Path)):
        label = f"table {origin.name}" if origin.name else "table"
        rows = partial(rows_of_batches, partial(_table_batches, origin.data))
        opened = Opened(label, origin.name, arrow_columns(origin.data.schema, label), rows, origin)
        return [(opened, SourceName(origin.name or ""))]
    named: list[tuple[Opened, SourceName]] = []
    for file in find_files(origin.data):
        columns, rows = read_format(file)
        is_local = file.label == file.path
        name = source_name(str(Path(file.path).resolve()) if is_local else file.path)
        opened = Opened(file.label, origin.name or name.name, columns, rows, origin)
        named.append((opened, name))
    return named or [_open_hub(origin)]


def _open_hub(origin: Input) -> tuple[Opened, SourceName]:
    """Opens a name that is no path.

    Raises:
        FileNotFoundError: it cannot be a name on the hub either.
        ValueError: see `open_hub`.
    """
    text = str(origin.data)
    hub = HubName.parse(text) if isinstance(origin.data, str) else None
    if hub is None or hub.repo.endswith(SUFFIXES):
        raise FileNotFoundError(
            f"{text!r} does not exist; give a file ({', '.join(SUFFIXES)}, text also as .gz or "
            ".zst), a folder of them, a pattern such as 'data/*.parquet', a URI such as "
            "'s3://bucket/file.parquet', or a hub name 'owner/name/config:split@revision'"
        )
    schema, batches = open_hub(hub)
    owner, _, repo = hub.repo.partition("/")
    name = SourceName(repo.lower(), (owner,))
    rows = partial(rows_of_batches, batches)
    opened = Opened(text, origin.name or name.name, arrow_columns(schema, text), rows, origin)
    return opened, name


def _table_batches(table: pa.Table, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    narrow = table if columns is None else table.select(columns)
    yield from narrow.to_batches(max_chunksize=BATCH_ROWS)


# Names of sources


def _named_apart(named: Sequence[tuple[Opened, SourceName]]) -> list[Opened]:
    """Puts the folder's name in front of a source's where another folder has a source so named."""
    homes: dict[str, set[tuple[str, ...]]] = {}
    for opened, name in named:
        if opened.origin.name is None and opened.name is not None:
            homes.setdefault(name.name, set()).add(name.folders)
    distinct: list[Opened] = []
    for opened, name in named:
        same = homes.get(name.name, set())
        if opened.origin.name is None and opened.name is not None and len(same) > 1:
            opened = replace(opened, name=name.qualified(_num_telling(name.name, same)))
        distinct.append(opened)
    return distinct


def _num_telling(name: str, homes: set[tuple[str, ...]]) -> int:
    """Returns how many innermost folders tell all sources of a name apart."""
    most = max(len(folders) for folders in homes)
    for num in range(1, most):
        if len({SourceName(name, folders).qualified(num) for folders in homes}) == len(homes):
            return num
    return most


# Names of columns


def _renamed(opened: Opened) -> Opened:
    """Returns the file with its columns under the names that `Input.columns` gives them."""
    present = {new: old for new, old in opened.origin.columns.items() if old in opened.columns}
    if not present:
        return opened
    gone = {*present, *present.values()}
    columns = {name: numeric for name, numeric in opened.columns.items() if name not in gone}
    columns |= {new: opened.columns[old] for new, old in present.items()}
    return replace(opened, columns=columns, rows=partial(_renamed_rows, opened.rows, present, gone))


def _renamed_rows(
    read: ReadRows, present: Mapping[str, str], gone: set[str], columns: list[str] | None
) -> Rows:
    file_columns = None if columns is None else [present.get(name, name) for name in columns]
    for row in read(file_columns):
        if isinstance(row, Unreadable):
            yield row
            continue
        kept: dict[str, object] = {name: value for name, value in row.items() if name not in gone}
        kept |= {new: row[old] for new, old in present.items() if old in row}
        yield kept


def _with_trees(opened: Opened) -> Opened:
    """Returns a file of single messages as a file of their trees."""
    if not holds_messages(opened.columns):
        return opened
    others = [name for name in opened.columns if name not in MESSAGE_COLUMNS]
    columns = dict.fromkeys((*TREE_COLUMNS, *others), False)
    read = opened.rows
    return replace(opened, columns=columns, rows=lambda _: trees_of(read(None)))


def _check_columns(files: Sequence[Opened]) -> None:
    """Checks that each column that an input names is in one of its files.

    Raises:
        ValueError: one is in none of them.
    """
    present = {name for opened in files for name in opened.columns}
    for opened in files:
        for new, old in opened.origin.columns.items():
            if old not in present:
                raise ValueError(
                    f"{new!r} is to be read from a column {old!r}, which no file has; they have "
                    f"{sorted(present)}: name one of these with --columns {new}=COLUMN"
                )
