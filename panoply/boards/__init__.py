"""Public boards, one a file: their rows, their own arithmetic, and what is known of them.

A new board is a module of this package that has a `BOARD`, and its name in
`panoply.config.board.BoardName`. Reading, scoring, intervals and the report are common to all.
"""

from __future__ import annotations

from importlib import import_module

from panoply.boards.board import Board


def load_board(name: str) -> Board:
    """Returns the board of a module of this package."""
    return import_module(f"{__name__}.{name}").BOARD
