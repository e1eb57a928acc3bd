"""Files of an audit: pairs with swapped labels, the findings, the cleaned and the reviewed pairs.

All pair files are read by every command that takes pairs. The audited files are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.audit import AuditFinding
from panoply.data.audit_verdicts import Opinion
from panoply.data.parquet import row_batches
from panoply.data.schema import PAIRS, PROMPT, split_key
from panoply.files import whole_file
from panoply.types import Array, Bools

BATCH_ROWS = 1024
MOST_EXAMPLES = 5
"""Pairs of a check that a report shows."""
REVIEWED = "reviewed"
"""Source of the pairs that persons labeled."""
FINDINGS = pa.schema([(name, pa.string()) for name in ("row_id", "check", "evidence", "action")])
LABELED = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt", PROMPT),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("source", pa.string()),
        ("subset", pa.string()),
        ("group", pa.string()),
        ("margin", pa.float32()),
        ("weight", pa.float32()),
        ("label_flipped", pa.bool_()),
    ]
)
"""A cleaned or reviewed pair: `row_id` is that of the audited pair, `label_flipped` says whether
its label was swapped, and a pair of `weight` 0 is in no training."""
SWAPPED = {
    "chosen": "rejected",
    "rejected": "chosen",
    "chosen_id": "rejected_id",
    "rejected_id": "chosen_id",
    "chosen_length": "rejected_length",
    "rejected_length": "chosen_length",
}


def pair_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a canonical file of pairs."""
    with pq.ParquetFile(path) as file:
        for batch in row_batches(file, BATCH_ROWS):
            yield from batch.to_pylist()


def swap_labels(path: Path, flipped_P: Bools, target: Path) -> None:
    """Writes canonical pairs with some labels the other way round; ids of rows stay."""
    rows = (_swapped(row) if flip else row for row, flip in _beside(path, flipped_P))
    _write(rows, PAIRS, target)


def write_findings(findings: Sequence[AuditFinding], target: Path) -> None:
    """Writes a row for each finding."""
    _write((asdict(finding) for finding in findings), FINDINGS, target)


def examples_of(path: Path, findings: Sequence[AuditFinding]) -> dict[str, list[dict[str, Any]]]:
    """Returns by check the pairs of its first findings, with their texts and evidence."""
    first: dict[str, dict[str, AuditFinding]] = {}
    for finding in findings:
        by_row = first.setdefault(finding.check, {})
        if len(by_row) < MOST_EXAMPLES:
            by_row.setdefault(finding.row_id, finding)
    row_ids = set(chain.from_iterable(first.values()))
    texts = {row["row_id"]: row for row in pair_rows(path) if row["row_id"] in row_ids}
    examples: dict[str, list[dict[str, Any]]] = {}
    for check, by_row in first.items():
        examples[check] = [_shown(texts[row_id]) | asdict(by_row[row_id]) for row_id in by_row]
    return examples


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("source", "subset", "prompt", "chosen", "rejected")
    return {name: row[name] for name in (*names, "chosen_length", "rejected_length")}


def write_cleaned(path: Path, sign_P: Array, factor_P: Array, target: Path) -> None:
    """Writes all pairs with the labels and weights that an audit proposes.

    Args:
        path: canonical pairs.
        sign_P: -1 where the label is swapped, else 1.
        factor_P: factor of the pair's weight; 0 leaves it out of every training.
        target: the file.
    """
    rows = (
        _labeled(row, row["source"], bool(sign < 0), float(factor))
        for row, (sign, factor) in _beside(path, zip(sign_P, factor_P, strict=True))
    )
    _write(rows, LABELED, target)


def write_reviewed(path: Path, opinions: Mapping[str, Opinion], target: Path) -> int:
    """Writes the pairs in which a person prefers one response, as pairs of the source REVIEWED.

    Returns:
        Their number. Without one there is no file.
    """
    rows: list[dict[str, Any]] = []
    for row in pair_rows(path):
        opinion = opinions.get(row["row_id"], "neither")
        if opinion != "neither":
            labeled = _labeled(row, REVIEWED, opinion == "rejected", 1.0)
            # A person said which is better, not by how much, nor what the pair weighs.
            rows.append({**labeled, "subset": row["source"], "margin": None, "weight": 1.0})
    if rows:
        _write(rows, LABELED, target)
    else:
        target.unlink(missing_ok=True)
    return len(rows)


def _labeled(row: Mapping[str, Any], source: str, flip: bool, factor: float) -> dict[str, Any]:
    labeled = _swapped(row) if flip else row
    # Of a row that named its group the key alone is left, which keeps the group together.
    has_group = row["split_key"] != split_key(row["prompt"])
    weight = 1.0 if row["weight"] is None else row["weight"]
    return {
        **{name: labeled[name] for name in ("row_id", "prompt", "chosen", "rejected", "subset")},
        "source": source,
        "group": row["split_key"] if has_group else None,
        "margin": None if flip else row["margin"],
        "weight": weight * factor,
        "label_flipped": flip,
    }


def _swapped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[SWAPPED.get(name, name)] for name in row}


def _beside(path: Path, values: Iterable[Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    return zip(pair_rows(path), values, strict=True)


def _write(rows: Iterable[dict[str, Any]], schema: pa.Schema, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as partial, pq.ParquetWriter(partial, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
