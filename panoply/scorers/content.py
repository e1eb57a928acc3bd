"""Content of what a WHERE names, so that scores are never taken for those of another scorer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from panoply.scorers.composite.opening import part_places, read_composite
from panoply.scorers.where import (
    BanditFile,
    CombinedScorers,
    JudgeFile,
    LocalModel,
    PythonFunction,
    RecordedScores,
    parse_where,
)

LARGE = 2**20
"""Bytes from which a file of a model counts by its size alone: weights are named in its seal."""


def content_hash(where: str) -> str:
    """Returns a hash of the local files that a scorer consists of, its parts' among them.

    It is the same for all scorers without files: endpoints, modules, names on the hub.

    Raises:
        ValueError, OSError: the settings of a composite cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in _files(where):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        if size < LARGE or file.suffix in (".yaml", ".py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(where: str) -> Iterator[Path]:
    match place := parse_where(where):
        case LocalModel():
            folder = Path(place.path).expanduser()
            yield from sorted(path for path in folder.rglob("*") if path.is_file())
        case PythonFunction():
            file = Path(place.place.rpartition(":")[0]).expanduser()
            yield from [file] if file.is_file() else []
        case JudgeFile() | RecordedScores() | BanditFile():
            file = Path(place.file).expanduser()
            yield from [file] if file.is_file() else []
        case CombinedScorers():
            file = Path(place.file).expanduser()
            yield file
            for part in part_places(file, read_composite(file, is_fitted=False)).values():
                yield from _files(part)
        case _:
            pass
