"""Settings of the files that a command reads: the names in them, where they differ from ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panoply.config import require
from panoply.secret import check_file_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesConfig:
    """Names of columns and sources in the files of a run."""

    columns: tuple[str, ...] = ()
    """Columns under the names of a known layout, as in `chosen=better,rejected=worse`; it holds for
    every file that has such a column."""
    source: tuple[str, ...] = ()
    """Name of the files' source: one for all, or one for each file in its order. Empty: their
    column `source` where it names data sets, else the name of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledFilesConfig(FilesConfig):
    """Names in the files of pairs and ratings of a run, and the bad rows that they may have."""

    max_quarantine_share: float = 0.2
    """Largest share of bad rows, which are left out; a larger one stops the run."""


def check_files(config: FilesConfig, files: Sequence[str], flag: str) -> None:
    """Checks the names that are given to files.

    Args:
        config: the names.
        files: the files that `config.source` names.
        flag: the field of the files.

    Raises:
        ValueError: a column is not of the form `name=column`, or the sources are neither one nor as
            many as the files.
    """
    names_of_columns(config.columns)
    if isinstance(config, LabeledFilesConfig):
        share = config.max_quarantine_share
        require(0 <= share <= 1, "max_quarantine_share", share, "in [0, 1]")
    check_source(config.source, files, "source", flag)


def check_source(source: Sequence[str], files: Sequence[str], name: str, flag: str) -> None:
    """Checks that there is a source for all files, or one for each, and that no name has a secret.

    Raises:
        ValueError: there is not, or one does.
    """
    # A recipe has a marker, which is no text, in the place of files that its user will name.
    for file in files if isinstance(files, (tuple, list)) else ():
        check_file_uri(str(file), flag)
    if not source:
        return
    fits = all(source) and len(source) in (1, len(files))
    require(fits, name, source, f"one name, or as many as there are {flag} ({len(files)})")


def names_of_columns(columns: Sequence[str]) -> dict[str, str]:
    """Returns the column of a file by the name that a layout has for it.

    Raises:
        ValueError: an entry is not of the form `name=column`, or a name is there twice.
    """
    names: dict[str, str] = {}
    for entry in ",".join(columns).split(",") if columns else ():
        name, _, column = (part.strip() for part in entry.partition("="))
        allowed = "of the form `name=column`, as in `chosen=better,rejected=worse`"
        require(bool(name and column), "columns", entry, allowed)
        require(name not in names, "columns", entry, f"one column for {name!r}")
        names[name] = column
    return names


def bounds_of_scales(scales: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns the lowest and the highest rating of a scale by the rated column.

    Raises:
        ValueError: an entry is not of the form `column=low:high` with low < high.
    """
    bounds: dict[str, tuple[float, float]] = {}
    for entry in ",".join(scales).split(",") if scales else ():
        name, _, numbers = entry.partition("=")
        low, _, high = numbers.partition(":")
        try:
            bounds[name.strip()] = float(low), float(high)
        except ValueError:
            bounds[name.strip()] = 1.0, 0.0
        ends = bounds[name.strip()]
        allowed = "of the form `column=low:high` with low < high, as in `tone=1:5`"
        require(bool(name.strip()) and ends[0] < ends[1], "rating_scales", entry, allowed)
    return bounds


def names_of_ratings(columns: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns the columns that are ratings, and those that a layout has under another name.

    Raises:
        ValueError: see `names_of_columns`.
    """
    entries = [entry.strip() for entry in ",".join(columns).split(",")]
    named = [entry for entry in entries if "=" in entry]
    rated = tuple(entry for entry in entries if entry and "=" not in entry)
    return rated, names_of_columns(named)
