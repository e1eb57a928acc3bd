"""Describes what a run would read of its files: counts, examples, quarantine, columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow.parquet as pq

from panoply.data.data_file import Unreadable
from panoply.data.formats import BATCH_ROWS
from panoply.data.ingest import IngestLimits, ingest_pairs, ingest_ratings
from panoply.data.layouts import pair_layout, prompt_layout, rating_layout
from panoply.data.parquet import row_batches
from panoply.data.parse import source_of
from panoply.data.quarantine import BadRow
from panoply.data.read import Input, Opened, open_inputs
from panoply.data.rows import FileLayout
from panoply.data.schema import Prompt, part_of, split_key
from panoply.data.summary import summary_lines
from panoply.data.validate import clean_prompt

FileKind: TypeAlias = Literal["pairs", "ratings", "prompts"]
KINDS: tuple[FileKind, ...] = ("pairs", "ratings", "prompts")
EXAMPLES = 3
"""Rows that are named for a reason of quarantine."""


@dataclass(frozen=True, slots=True)
class FileColumns:
    """Layout of a file, and the columns that it does not read."""

    label: str
    layout: str
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row as it is read."""

    title: str
    """Source, subset and part."""
    prompt: Prompt
    responses: Mapping[str, str]
    """By what they are: chosen and rejected, or response."""
    labels: Mapping[str, Any]
    """Ratings, margin, weight or label, where the row has them."""


@dataclass(slots=True)
class Overview:
    """Holds what was read of files as rows of one kind."""

    kind: FileKind
    files: Sequence[FileColumns]
    num_rows: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By source, subset and part."""
    prompts: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Split keys by source and part: prompts or groups."""
    rows: list[ShownRow] = field(default_factory=list)
    quarantined: dict[str, list[str]] = field(default_factory=dict)
    """Files and rows by reason."""
    lines: list[str] = field(default_factory=list)
    """What a run says of the same data."""


Layouts: TypeAlias = list[tuple[Opened, FileLayout[Any]]]


def look(
    inputs: Sequence[Input], kind: FileKind | None, folder: Path, *, num_shown: int, seed: int
) -> Overview:
    """Reads files as a run would; `folder` gets the rows and the quarantine.

    Args:
        inputs: the files.
        kind: what they hold; None: the first of KINDS in whose layouts all of them are.
        folder: gets `pairs.parquet` or `ratings.parquet`, and the quarantine beside it.
        num_shown: number of rows to show.
        seed: seed of the split.

    Raises:
        FileNotFoundError, ValueError: see `open_inputs`; or a file is of no known layout, or holds
            no good row.
    """
    kind, layouts = _recognized(open_inputs(inputs), kind)
    files = [
        FileColumns(opened.label, layout.name, tuple(sorted(set(opened.columns) - layout.reads)))
        for opened, layout in layouts
    ]
    overview = Overview(kind, files)
    if kind == "prompts":
        _read_prompts(layouts, overview, num_shown, seed)
        return overview
    limits = IngestLimits(max_quarantine_share=1.0)
    ingest = ingest_pairs if kind == "pairs" else ingest_ratings
    ingested = ingest(inputs, folder, limits)
    overview.lines = summary_lines(ingested)
    for line in ingested.quarantine.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        overview.quarantined.setdefault(entry["reason"], []).append(
            f"{entry['file']}:{entry['row']}"
        )
    _count(ingested.path, overview, seed)
    _show(ingested.path, overview, num_shown, seed)
    return overview


def _recognized(files: Sequence[Opened], kind: FileKind | None) -> tuple[FileKind, Layouts]:
    """Returns the first kind in whose layouts all files are, with their layouts.

    Raises:
        ValueError: there is none.
    """
    problems: dict[str, str] = {}
    for name in KINDS if kind is None else (kind,):
        try:
            return name, [(opened, _layout(opened, name)) for opened in files]
        except ValueError as error:
            problems[name] = str(error)
    raise ValueError(problems[kind or "pairs"])


def _layout(opened: Opened, kind: FileKind) -> FileLayout[Any]:
    recognize: Mapping[str, Callable[[], FileLayout[Any]]] = {
        "pairs": lambda: pair_layout(opened.columns),
        "ratings": lambda: rating_layout(opened.columns, opened.origin.attributes),
        "prompts": lambda: prompt_layout(opened.columns),
    }
    try:
        return recognize[kind]()
    except ValueError as error:
        raise ValueError(f"{opened.label}: {error}") from error


# Pairs and ratings


def _count(path: Path, overview: Overview, seed: int) -> None:
    with pq.ParquetFile(path) as file:
        for batch in row_batches(file, BATCH_ROWS, ["source", "subset", "split_key"]):
            for row in batch.to_pylist():
                _count_row(overview, row["source"], row["subset"], row["split_key"], seed)


def _count_row(overview: Overview, source: str, subset: str, key: str, seed: int) -> str:
    part = part_of(key, seed)
    overview.num_rows[source, subset, part] += 1
    overview.prompts.setdefault((source, part), set()).add(key)
    return part


def _show(path: Path, overview: Overview, num_shown: int, seed: int) -> None:
    """Adds rows that are spread evenly over the file."""
    with pq.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
        places = {i * num_rows // num_shown for i in range(num_shown)} if num_shown else set[int]()
        position = 0
        for batch in row_batches(file, BATCH_ROWS):
            inside = [i for i in places if position <= i < position + batch.num_rows]
            overview.rows += (
                _shown(batch.slice(i - position, 1).to_pylist()[0], seed) for i in sorted(inside)
            )
            position += batch.num_rows


def _shown(row: dict[str, Any], seed: int) -> ShownRow:
    responses = {name: row[name] for name in ("chosen", "rejected", "response") if name in row}
    not_labels = {"row_id", "prompt_id", "split_key", "source", "subset", "prompt", *responses}
    not_labels |= {
        "chosen_id",
        "rejected_id",
        "text_id",
        "length",
        "chosen_length",
        "rejected_length",
    }
    labels = {
        name: value for name, value in row.items() if name not in not_labels and value is not None
    }
    parts = (row["source"], row["subset"], part_of(row["split_key"], seed))
    return ShownRow(", ".join(filter(None, parts)), row["prompt"], responses, labels)


# Prompts


def _read_prompts(layouts: Layouts, overview: Overview, num_shown: int, seed: int) -> None:
    for opened, layout in layouts:
        for number, row in enumerate(opened.rows(None), start=1):
            try:
                if isinstance(row, Unreadable):
                    raise BadRow(row.reason)
                (raw,) = layout.adapt(row)
                prompt = clean_prompt(raw.prompt)
            except BadRow as error:
                place = f"{opened.label}:{number}"
                overview.quarantined.setdefault(str(error), []).append(place)
                continue
            source = opened.origin.name or source_of(raw.source) or str(opened.name)
            _count_row(overview, source, "", split_key(prompt), seed)
            if len(overview.rows) < num_shown:
                labels = {} if raw.label is None else {"label": raw.label}
                overview.rows.append(ShownRow(source, prompt, {}, labels))
    if overview.quarantined:
        overview.lines.append(
            "a run refuses prompts that cannot be read: mend or remove those rows"
        )
