"""Quarantine of bad rows, each with its file, its number and the reason."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from panoply.files import whole_file

EXCERPT_CHARACTERS = 200


class BadRow(ValueError):
    """A row that goes to quarantine; its message is the reason, and quotes no text."""


class Quarantine:
    """Counts good rows and bad, and writes the bad ones to a JSONL file.

    As a context manager, it opens the file, which appears on leaving, also after an error, since it
    explains the error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_good = 0
        self.num_ties = 0
        self.reasons: Counter[str] = Counter()
        self._open = ExitStack()
        self._file: TextIO

    def __enter__(self) -> Quarantine:
        """Opens the file."""
        partial = self._open.enter_context(whole_file(self.path))
        self._file = self._open.enter_context(partial.open("w", encoding="utf-8"))
        return self

    def __exit__(self, *error: object) -> None:
        """Puts the file in its place."""
        # Without the error, which would discard the file.
        self._open.close()

    def reject(self, file: str, row_number: int, reason: str, content: object) -> None:
        """Writes one bad row; `row_number` counts from 1."""
        try:
            excerpt = json.dumps(content, ensure_ascii=False, default=str)[:EXCERPT_CHARACTERS]
        except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
            excerpt = ""
        line = {"file": file, "row": row_number, "reason": reason, "excerpt": excerpt}
        self._file.write(json.dumps(line) + "\n")
        self.reasons[reason] += 1

    def check_share(self, max_share: float) -> None:
        """Checks the share of bad rows.

        Raises:
            ValueError: the share is above `max_share`; the message counts the reasons.
        """
        num_bad = self.reasons.total()
        num_rows = num_bad + self.num_good
        if num_bad > max_share * num_rows:
            raise ValueError(
                f"{num_bad} of {num_rows} rows are bad, more than the allowed share of "
                f"{max_share!r}: {self.describe()}. See {str(self.path)!r}; mend the data or "
                "raise --max-quarantine-share"
            )

    def describe(self) -> str:
        """Returns the reasons with their counts, most frequent first."""
        return ", ".join(f"{reason} ({n})" for reason, n in self.reasons.most_common())
