"""RM-Bench (arXiv 2410.16184) by its own arithmetic, so that a number here is the number there.

Three right and three wrong responses to a prompt, each written in three styles, and all nine pairs
compared. With M[c, r] the share of pairs of chosen style c and rejected style r that are won,

    hard   = mean of M above the diagonal: the wrong response is the fancier one
    normal = mean of the diagonal
    easy   = mean of M below it

in each domain; overall is the mean over domains, so that every domain counts alike. A tie is lost
here, as on the board (elsewhere it is half a win); a missing margin (NaN) is left out and counted.

Ingested pairs keep no board's own columns, so the styles are read from the files themselves, beside
the ids of both texts, on which scores hang: texts that are the same in two styles are scored once
and counted in both cells.

Legend: `P` pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from panoply.data.data_file import Unreadable
from panoply.data.layouts import pair_layout
from panoply.data.quarantine import BadRow
from panoply.data.read import Input, Opened, open_input
from panoply.data.rows import Row as FileRow
from panoply.data.validate import clean_pair
from panoply.report.results.pairs import LEADS, lead
from panoply.report.section import Column, Metrics, Row, Section, Table, count, falling, mean, words
from panoply.types import Array, Bools, Ints, Strings

STYLES = ("concise", "detailed", "markdown")
"""Names of the board's indices, from plain to fancy."""
LEVELS = ("hard", "normal", "easy", "average")


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

    def measure(
        self, row: Mapping[str, int], scores: Mapping[str, Array], seen_P: Bools
    ) -> dict[str, Any]:
        """Returns the numbers of every scorer, on prompts not trained on (on all where none is).

        A pair that was not scored, for example beyond `max_pairs_per_source`, is missing.
        """
        kept = np.flatnonzero(~seen_P) if not seen_P.all() else np.arange(len(seen_P))
        chosen = np.array([row.get(str(name), -1) for name in self.chosen_P[kept]], np.int64)
        rejected = np.array([row.get(str(name), -1) for name in self.rejected_P[kept]], np.int64)
        missing = (chosen < 0) | (rejected < 0)
        styles = self.chosen_style_P[kept], self.rejected_style_P[kept]
        scorers: dict[str, Any] = {}
        for name, score in scores.items():
            margins = np.where(missing, np.nan, score[chosen] - score[rejected])
            scorers[name] = by_level(margins, *styles, self.subset_P[kept])
        return {"num_pairs": len(seen_P), "num_seen": int(seen_P.sum()), "scorers": scorers}


def read(inputs: Sequence[Input]) -> StyledPairs:
    """Reads RM-Bench as it is published, or one pair a row with the indices of both styles.

    Published (THU-KEG/RM-Bench), a row holds three `chosen` and three `rejected` responses, from
    plain to fancy, and their `domain`; pair by pair, it holds a `meta` column with the indices `ci`
    and `rj`. Rows that are no clean pair are left out as ingestion quarantines them.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input has neither, or a row of it does not.
    """
    rows: list[tuple[str, str, str, str, int, int]] = []
    for origin in inputs:
        for opened in open_input(origin):
            rows += _rows(opened)
    texts = np.array([row[:4] for row in rows], dtype=object)
    styles = np.array([row[4:] for row in rows], dtype=np.int64)
    return StyledPairs(*texts.T, *styles.T)


def _rows(opened: Opened) -> list[tuple[str, str, str, str, int, int]]:
    if not ({"meta", "domain"} & set(opened.columns)):
        raise _no_board(opened, f"it has columns {sorted(opened.columns)}")
    layout = pair_layout(opened.columns)
    rows: list[tuple[str, str, str, str, int, int]] = []
    for number, row in enumerate(opened.rows(None), start=1):
        if isinstance(row, Unreadable):
            continue
        styles = _styles(row)
        if styles is None:
            what = "meta" if "meta" in row else "chosen"
            raise _no_board(opened, f"row {number} has {what} {row.get(what)!r:.100}")
        with suppress(BadRow):
            # The layout pairs lists in the order of `styles`.
            for raw, (chosen, rejected) in zip(layout.adapt(row), styles, strict=True):
                with suppress(BadRow):
                    pair = clean_pair(raw, "")
                    ids = (pair["chosen_id"], pair["rejected_id"], pair["split_key"])
                    rows.append((*ids, pair["subset"], chosen, rejected))
    if not rows:
        raise _no_board(opened, "it has no clean pair")
    return rows


def _styles(row: FileRow) -> Sequence[tuple[int, int]] | None:
    """Returns the styles of a row's pairs; None where the row is none of RM-Bench."""
    if "meta" not in row:
        lists = (row.get("chosen"), row.get("rejected"))
        sizes = [len(cast("list[object]", held)) for held in lists if isinstance(held, list)]
        indices = range(len(STYLES))
        return list(product(indices, indices)) if sizes == [len(STYLES)] * 2 else None
    meta = row["meta"]
    try:
        values = json.loads(meta) if isinstance(meta, str) else meta
    except ValueError:
        return None
    if not isinstance(values, Mapping):
        return None
    chosen, rejected = values.get("ci"), values.get("rj")
    allowed = range(len(STYLES))
    if not (isinstance(chosen, int) and isinstance(rejected, int)):
        return None
    return [(chosen, rejected)] if chosen in allowed and rejected in allowed else None


def _no_board(opened: Opened, problem: str) -> ValueError:
    return ValueError(
        f"{opened.label} holds no RM-Bench pairs: {problem}. --board rmbench needs lists of "
        f"{len(STYLES)} chosen and {len(STYLES)} rejected responses with their domain, as "
        "published, or a column meta with the style indices ci and rj, 0 to "
        f"{len(STYLES) - 1}; name RM-Bench's file alone, or leave out --board"
    )


def style_matrix(margins_P: ArrayLike, chosen_P: ArrayLike, rejected_P: ArrayLike) -> Array:
    """Returns M `[3, 3]`, NaN in a cell without margins.

    Args:
        margins_P: score of the chosen minus score of the rejected response.
        chosen_P: style of the chosen response, an index into STYLES.
        rejected_P: style of the rejected response.

    Raises:
        ValueError: the arguments differ in length, or a style is none of these.
    """
    margins = np.asarray(margins_P, np.float64)
    cells = np.stack([np.asarray(chosen_P, np.int64), np.asarray(rejected_P, np.int64)])
    if cells.shape[1:] != margins.shape:
        raise ValueError(f"lengths differ: {margins.shape} margins, {cells.shape[1:]} styles")
    if cells.size and not (cells.min() >= 0 and cells.max() < len(STYLES)):
        wrong = sorted(set(cells.ravel().tolist()) - set(range(len(STYLES))))
        raise ValueError(f"styles are {wrong!r}; they must be 0 to {len(STYLES) - 1}: {STYLES}")
    scored = ~np.isnan(margins)
    won, counted = np.zeros((2, len(STYLES), len(STYLES)))
    np.add.at(won, tuple(cells[:, scored]), margins[scored] > 0)
    np.add.at(counted, tuple(cells[:, scored]), 1)
    return np.divide(won, counted, out=np.full_like(won, np.nan), where=counted > 0)


def levels(matrix: Array) -> dict[str, float]:
    """Returns hard, normal and easy of a style matrix, and their mean as average."""
    hard = float(matrix[np.triu_indices(len(STYLES), 1)].mean())
    normal = float(np.diag(matrix).mean())
    easy = float(matrix[np.tril_indices(len(STYLES), -1)].mean())
    average = float(np.mean([hard, normal, easy]))
    return {"hard": hard, "normal": normal, "easy": easy, "average": average}


def by_level(
    margins_P: ArrayLike, chosen_P: ArrayLike, rejected_P: ArrayLike, subset_P: ArrayLike
) -> dict[str, Any]:
    """Returns RM-Bench's numbers for one scorer.

    Args:
        margins_P: score of the chosen minus score of the rejected response, NaN where missing.
        chosen_P: style of the chosen response.
        rejected_P: style of the rejected response.
        subset_P: name of the file that a pair is from; what precedes a hyphen is its domain, so
            that safety-refuse and safety-response are one.

    Returns:
        LEVELS, the mean of each over domains; `by_domain`, where each has LEVELS and its `matrix`;
        the counts `n` and `missing`, and the share of `ties`.
    """
    margins = np.asarray(margins_P, np.float64)
    chosen, rejected = np.asarray(chosen_P), np.asarray(rejected_P)
    domain = np.array([str(name).partition("-")[0] for name in np.asarray(subset_P)], dtype=object)
    by_domain: dict[str, Any] = {}
    for name in sorted(set(domain)):
        at = domain == name
        matrix = style_matrix(margins[at], chosen[at], rejected[at])
        by_domain[name] = levels(matrix) | {"matrix": matrix.tolist()}
    scored = ~np.isnan(margins)
    numbers: dict[str, Any] = {}
    for level in LEVELS:
        of_domains = [entry[level] for entry in by_domain.values()]
        numbers[level] = float(np.mean(of_domains)) if of_domains else float("nan")
    return numbers | {
        "by_domain": by_domain,
        "n": float(scored.sum()),
        "missing": float((~scored).sum()),
        "ties": float((margins[scored] == 0).mean()) if scored.any() else float("nan"),
    }


def section(measured: Metrics) -> Section:
    """Returns each scorer's levels, best average first, and the wins by style of the chief one."""
    scorers = measured["scorers"]
    chief = lead(scorers)
    domains = list(scorers[chief]["by_domain"])
    rows: list[Row] = []
    for name in sorted(scorers, key=lambda name: falling(scorers[name].get("average"))):
        entry = scorers[name]
        averages = [entry["by_domain"][domain].get("average") for domain in domains]
        cells = [*(entry.get(level) for level in LEVELS), *averages]
        rows.append(Row(words(name), cells, "strong" if name in LEADS else ""))
    matrices = [entry["matrix"] for entry in scorers[chief]["by_domain"].values()]
    styles: list[Row] = []
    for i, style in enumerate(STYLES):
        cells = [mean([matrix[i][j] for matrix in matrices]) for j in range(len(STYLES))]
        styles.append(Row(style, cells))
    # Where every prompt was trained on, all pairs count.
    left_out = measured["num_seen"] if measured["num_seen"] < measured["num_pairs"] else 0
    note = f"{count(left_out)} pairs of prompts trained on left out"
    names = [*LEVELS, *domains]
    columns = [Column(name, heat=(0.5, 1.0)) for name in names]
    by_domain = Table(f"RM-Bench (mean over domains; {note})", "scorer", columns, rows)
    columns = [Column(style, heat=(0.5, 1.0)) for style in STYLES]
    title = f"RM-Bench: wins of the {chief} by style, mean over domains"
    by_style = Table(title, "chosen \\ rejected", columns, styles)
    return Section("rmbench", "RM-Bench", "", [by_domain, by_style])
