"""Names of the data sets in a file, and the columns that were not taken as they might have been."""

from __future__ import annotations

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


def numbers_left_out(opened: Opened, layout: FileLayout[RawRating]) -> list[str]:
    """Returns a sentence on the columns of numbers that were not taken as ratings, if any."""
    numeric = {name for name, is_number in opened.columns.items() if is_number}
    others = sorted(numeric - set(layout.attributes))
    if not others:
        return []
    return [f"{opened.label}: columns of numbers that are not read as ratings: {', '.join(others)}"]
