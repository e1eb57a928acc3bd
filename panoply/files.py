"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yields a path beside `path` to write to; on exit, syncs that file and renames it to `path`.

    A reader sees the old content or all of the new. Writers of the same path, in any process, do
    not meet. An exception in the block leaves `path` as it was, and nothing beside it.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    # The suffix stays last: NumPy appends its own to a name without it.
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside a folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: str) -> None:
    """Writes a text file in UTF-8; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(content, encoding="utf-8")
