"""Rows of public boards that hold more than a pair: RM-Bench's styles.

Ingested pairs keep no board's own columns. The styles are read from the files themselves, beside
the ids of both texts, on which scores hang: texts that are the same in two styles are scored once
and counted in both cells.

Legend: `P` pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panoply.data.layouts import Row, pair_layout
from panoply.data.parse import BadRow
from panoply.data.read import Input, Opened, Unreadable, open_input
from panoply.data.validate import clean_pair
from panoply.types import Ints, Strings

NUM_STYLES = 3


@dataclass(frozen=True, slots=True)
class StyledPairs:
    """The pairs of RM-Bench by the ids of their texts."""

    chosen_P: Strings
    rejected_P: Strings
    key_P: Strings
    """Split keys."""
    subset_P: Strings
    chosen_style_P: Ints
    rejected_style_P: Ints


def read_styles(inputs: Sequence[Input]) -> StyledPairs:
    """Reads RM-Bench's pairs: a `meta` column with the style indices `ci` and `rj`.

    Rows that are no clean pair are left out here as they are in ingestion, which quarantines them.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input has no `meta` column, or a row of it no such index.
    """
    found = [row for origin in inputs for opened in open_input(origin) for row in _rows(opened)]
    texts = [
        np.array(column, dtype=object) for column in zip(*(row[:4] for row in found), strict=True)
    ]
    styles = np.array([row[4:] for row in found], dtype=np.int64)
    chosen, rejected, key, subset = texts
    return StyledPairs(chosen, rejected, key, subset, styles[:, 0], styles[:, 1])


def _rows(opened: Opened) -> list[tuple[str, str, str, str, int, int]]:
    if "meta" not in opened.columns:
        raise _no_board(opened, f"it has columns {sorted(opened.columns)}")
    layout = pair_layout(opened.columns)
    rows: list[tuple[str, str, str, str, int, int]] = []
    for number, row in enumerate(opened.rows(None), start=1):
        if isinstance(row, Unreadable):
            continue
        styles = _styles(row)
        if styles is None:
            raise _no_board(opened, f"row {number} has meta {row['meta']!r:.100}")
        try:
            pair = clean_pair(layout.adapt(row)[0], "")
        except BadRow:
            continue
        ids = (pair["chosen_id"], pair["rejected_id"], pair["split_key"], pair["subset"])
        rows.append((*ids, *styles))
    if not rows:
        raise _no_board(opened, "it has no clean pair")
    return rows


def _styles(row: Row) -> tuple[int, int] | None:
    meta = row.get("meta")
    try:
        values = json.loads(meta) if isinstance(meta, str) else meta
    except ValueError:
        return None
    if not isinstance(values, Mapping):
        return None
    chosen, rejected = values.get("ci"), values.get("rj")
    known = range(NUM_STYLES)
    if not (isinstance(chosen, int) and isinstance(rejected, int)):
        return None
    return (chosen, rejected) if chosen in known and rejected in known else None


def _no_board(opened: Opened, found: str) -> ValueError:
    return ValueError(
        f"{opened.label} holds no RM-Bench pairs: {found}. `--board rmbench` needs a column meta "
        f"with the style indices ci and rj, 0 to {NUM_STYLES - 1}; name RM-Bench's file alone, or "
        "leave out `--board`"
    )
