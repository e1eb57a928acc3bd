"""Names of the data sets in a file, and the columns that were not taken as they might have been."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from panoply.data.read import Opened
from panoply.data.rows import FileLayout, RawPair, RawRating


def sources_of(
    opened: Opened, layout: FileLayout[RawPair] | FileLayout[RawRating], notes: list[str]
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the one source of a file, or None where its rows name theirs; and all sources.

    The column `source` counts where its values name data sets, see `Opened.sources`. Where they
    name rows, or all rows have one origin (a repository, a URL), which several files may share, the
    file's name counts, and `notes` says so.
    """
    if opened.origin.name:
        return opened.origin.name, (opened.origin.name,)
    sources = opened.sources() if layout.has_source else ()
    is_origin = len(sources) == 1 and "/" in sources[0] and opened.name is not None
    if sources and not is_origin:
        return None, sources
    if opened.name is None:
        raise ValueError(
            "the table has no column 'source' that names data sets; give the input a name"
        )
    if layout.has_source and "source" in opened.columns:
        what = f"is {sources[0]!r} alone" if sources else "names rows and not data sets"
        notes.append(
            f"{opened.label}: column 'source' {what}; all rows count as source {opened.name!r}"
        )
    return opened.name, (opened.name,)


def columns_unread(opened: Opened, layout: FileLayout[RawPair]) -> list[str]:
    """Returns a sentence on the columns of a file that its layout does not read, if any."""
    unread = sorted(set(opened.columns) - layout.reads)
    if not unread:
        return []
    return [f"{opened.label}: read as {layout.name}; columns not read: {', '.join(unread)}"]


def columns_unrated(opened: Opened, layout: FileLayout[RawRating]) -> list[str]:
    """Returns sentences on the columns that were not taken as ratings: of numbers, and others."""
    numeric = {name for name, is_number in opened.columns.items() if is_number}
    numbers = sorted(numeric - set(layout.attributes))
    others = sorted(set(opened.columns) - numeric - layout.reads)
    lines: list[str] = []
    for what, names in (("of numbers ", numbers), ("", others)):
        if names:
            lines.append(
                f"{opened.label}: columns {what}that are not read as ratings: {', '.join(names)}"
            )
    return lines


SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
"""Beginning of the name of a file or folder that holds one split of a data set."""


def splits_read(files: Sequence[Opened]) -> list[str]:
    """Returns a sentence on each input whose files are several splits, all of which are read."""
    splits: dict[str, set[str]] = {}
    for opened in files:
        parts = PurePosixPath(opened.label).parts[-2:]
        named = next((part for part in reversed(parts) if SPLIT.match(part)), "")
        splits.setdefault(str(opened.origin.data), set()).add(named.split(".")[0])
    return [
        f"{data}: all its splits are read ({', '.join(sorted(names))}); to read one, name it"
        for data, names in splits.items()
        if len(names) > 1 and len({SPLIT.match(name)[1] for name in names if name}) > 1  # pyright: ignore[reportOptionalSubscript]
    ]
