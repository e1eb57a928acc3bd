"""Public boards, one a file: their rows, their own arithmetic, and their section of a report.

A new board is a module of this package that has `read` and `section`, and its name in
`panoply.config.evaluate.Board`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from panoply.config.evaluate import Board
from panoply.data.read import Input
from panoply.report.section import Section
from panoply.types import Array, Bools, Strings


class BoardRows(Protocol):
    """The rows of a board, by the ids of their texts."""

    @property
    def key_P(self) -> Strings:
        """Split keys."""
        ...

    def measure(
        self, row: Mapping[str, int], scores: Mapping[str, Array], seen_P: Bools
    ) -> dict[str, Any]:
        """Returns the board's numbers of every scorer, on the rows that no model has seen.

        Args:
            row: row of each text id in the scores.
            scores: of texts, by scorer.
            seen_P: rows of prompts that were trained on. Where all were, all count.
        """
        ...


def read_board(name: Board, inputs: Sequence[Input]) -> BoardRows | None:
    """Reads the rows of a board from its files; None where the name is 'none'.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input is not of that board.
    """
    return None if name == "none" else import_module(f"{__name__}.{name}").read(inputs)


def section_of(name: Board, measured: Mapping[str, Any]) -> Section:
    """Returns the section of a report that shows what `BoardRows.measure` returned."""
    return import_module(f"{__name__}.{name}").section(measured)
