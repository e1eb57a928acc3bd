"""A person's verdicts on audited pairs: read from the files that the review page saves.

A line is `{"row_id": ..., "preferred": ...}` with the id of the better response, or null for none.
The page shows neither the label nor which response it prefers, so a verdict is blind to both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

Opinion: TypeAlias = Literal["chosen", "rejected", "neither"]
SAVED = "save it from the run's review page again"


def read_verdicts(files: Sequence[str], sides: Mapping[str, tuple[str, str]]) -> dict[str, Opinion]:
    """Returns what persons prefer in each row that they judged.

    In one file the last verdict on a row counts. Of several files the majority counts; without one
    neither response is preferred.

    Args:
        files: as the review page saves them.
        sides: ids of the chosen and of the rejected response by row.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is no file of verdicts, or about rows that the pairs do not have.
    """
    ballots: dict[str, Counter[Opinion]] = {}
    for file in files:
        by_row: dict[str, Opinion] = {}
        for number, verdict in _lines(Path(file).expanduser()):
            row_id, preferred = verdict["row_id"], verdict["preferred"]
            if row_id not in sides:
                raise ValueError(
                    f"{file!r}, line {number}: no audited pair has the row id {row_id!r}; name the "
                    "verdicts on these pairs"
                )
            by_row[row_id] = _opinion(preferred, sides[row_id], file, number)
        for row_id, opinion in by_row.items():
            ballots.setdefault(row_id, Counter())[opinion] += 1
    return {row_id: _majority(votes) for row_id, votes in ballots.items()}


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.is_file():
        raise FileNotFoundError(f"the file of verdicts {str(file)!r} does not exist; {SAVED}")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            verdict = json.loads(line)
        except ValueError:
            verdict = None
        if not isinstance(verdict, dict) or not {"row_id", "preferred"} <= verdict.keys():
            raise ValueError(
                f"{str(file)!r}, line {number} is no verdict, which has `row_id` and `preferred`; "
                f"{SAVED}"
            )
        yield number, verdict  # pyright: ignore[reportReturnType]


def _opinion(preferred: object, sides: tuple[str, str], file: str, number: int) -> Opinion:
    if preferred is None:
        return "neither"
    if preferred not in sides:
        raise ValueError(
            f"{file!r}, line {number}: the preferred response is none of that row's; {SAVED}"
        )
    return "chosen" if preferred == sides[0] else "rejected"


def _majority(votes: Counter[Opinion]) -> Opinion:
    (opinion, most), *others = votes.most_common()
    return "neither" if others and others[0][1] == most else opinion
