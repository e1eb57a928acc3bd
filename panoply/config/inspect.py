"""Settings of a look at data files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from panoply.config import require
from panoply.config.files import FilesConfig, bounds_of_scales, check_files

Kind: TypeAlias = Literal["auto", "pairs", "ratings", "prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig(FilesConfig):
    """Show what is read of data files: layout, rows, sources, parts, quarantine, ignored columns.

    Nothing is trained and no model is loaded. The rows are those that training and evaluation read,
    so a file that looks right here is read right there.
    """

    files: tuple[str, ...]
    """Files, folders, patterns, URIs or hub names; docs/data.md lists the layouts."""
    kind: Kind = "auto"
    """Rows to read the files as; auto: pairs where the columns allow it, else ratings, else
    prompts."""
    rating_columns: tuple[str, ...] = ()
    """Columns that are ratings, as in `tone,quality`; empty: those that hold numbers, but no ids,
    times or counts."""
    rating_scales: tuple[str, ...] = ()
    """Lowest and highest rating of a column, as in `tone=1:5`."""
    rows: int = 10
    """Number of rows that are shown, spread evenly over the files."""
    model: str = ""
    """Model whose chat template renders the shown rows; its weights are not loaded. Empty: the
    turns by role."""
    seed: int = 0
    """Seed of the split, as in the run that will read the files."""

    def __post_init__(self) -> None:
        require(bool(self.files), "files", self.files, "at least one file")
        require(self.kind in get_args(Kind), "kind", self.kind, f"one of {get_args(Kind)}")
        check_files(self, self.files, "files")
        bounds_of_scales(self.rating_scales)
        require(self.rows >= 0, "rows", self.rows, ">= 0")
        require(self.seed >= 0, "seed", self.seed, ">= 0")
