"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yields a path beside `path` to write to; on exit, syncs that file and renames it to `path`.

    A reader sees the old content or all of the new. Writers of the same path, in any process, do
    not meet. An exception in the block leaves `path` as it was, and nothing beside it.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    # The name is hidden, so that readers of the folder pass over what a killed writer leaves. The
    # suffix stays last: NumPy appends its own to a name without it.
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file of strict JSON: numbers that are not finite become null; see `whole_file`."""
    write_whole(path, json.dumps(_finite(values), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value
