"""Names of the data sets in a file, and what of files and columns a user should hear of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from panoply.data.locate import PATTERN
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
SHARD = re.compile(r"(.+)-\d+-of-(\d+)")
"""Name of one of the files that a data set is cut into."""


def files_read(files: Sequence[Opened]) -> list[str]:
    """Returns a sentence on each folder of which several splits are read, or too few shards."""
    by_origin: dict[str, list[PurePosixPath]] = {}
    for opened in files:
        by_origin.setdefault(str(opened.origin.data), []).append(PurePosixPath(opened.label))
    lines: list[str] = []
    for data, paths in by_origin.items():
        splits = {name for path in paths if (name := _split_of(path))}
        if len({_kind_of(name) for name in splits}) > 1:
            named = ", ".join(sorted(splits))
            lines.append(f"{data}: all its splits are read ({named}); to read one, name it")
        if str(paths[0]) != data and not PATTERN.search(data):
            lines += _missing_shards(data, paths)
    return lines


def _split_of(path: PurePosixPath) -> str:
    """Returns the name of the split that a file holds, by its own name or its folder's."""
    for part in reversed(path.parts[-2:]):
        name = part.split(".")[0]
        if SPLIT.match(name):
            shard = SHARD.fullmatch(name)
            return shard[1] if shard else name
    return ""


def _kind_of(split: str) -> str:
    match = SPLIT.match(split)
    return match[1] if match else ""


def _missing_shards(data: str, paths: Sequence[PurePosixPath]) -> list[str]:
    shards = Counter(
        (str(path.parent / match[1]), int(match[2]))
        for path in paths
        if (match := SHARD.fullmatch(path.name.split(".")[0]))
    )
    return [
        f"{data}: {num} of {total} shards of {name!r} are there; fetch the others"
        for (name, total), num in shards.items()
        if num < total
    ]
