"""Seals of folders: the hash of every file, written last and compared before anything is read.

`seal.json` lists the size and SHA-256 of each file that loading reads. Texts for people (`*.md`)
and hidden files are not sealed: a model card may be edited. Files beside the sealed ones are let
be, but for those by which a loader would read other weights, another template or code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from panoply.files import read_json, reading, write_whole

SEAL = "seal.json"
FORMAT = 1
COPY_AGAIN = (
    "copy the folder again from where it is whole, or delete it and run the command that made it"
)
LOADED_SUFFIXES = (".safetensors", ".bin", ".pt", ".jinja", ".py")
"""Endings of files that change what a loader makes of a folder."""
LOADED_NAMES = frozenset(
    {
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "panoply.json",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""Names of files that transformers and peft read wherever they are there."""
LONGEST_NAME = 4096
"""Characters of a path, beyond which Linux has none."""
HASHERS = 4
"""Files that are hashed at once."""

logger = logging.getLogger(__name__)


def seal(folder: Path) -> str:
    """Writes the seal of a folder whose other files are all written; returns the seal's hash."""
    names = _sealed_names(folder)
    files: dict[str, dict[str, Any]] = {}
    for name, digest in zip(names, _hashes(folder, names), strict=True):
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    write_whole(folder / SEAL, json.dumps({"format": FORMAT, "files": files}, indent=1))
    return seal_hash(folder)


def seal_hash(folder: Path) -> str:
    """Returns the hash of a folder's seal, which stands for the folder's content.

    Raises:
        FileNotFoundError: the folder has no seal.
    """
    return hashlib.sha256((folder / SEAL).read_bytes()).hexdigest()


def check_seal(folder: Path, *, required: bool = False) -> bool:
    """Compares a folder with its seal; returns False where it has none.

    Args:
        folder: of a model, of adapters or of a checkpoint.
        required: whether the folder was made when folders were sealed. One that is older loads
            unchecked, which is logged once.

    Raises:
        ValueError: a file is missing, is another than the one that was sealed, or was added.
    """
    if not (folder / SEAL).is_file():
        if required:
            raise ValueError(
                f"{str(folder)!r} has no {SEAL}, which is written last: it was not copied to the "
                f"end; {COPY_AGAIN}"
            )
        return False
    files = _read_seal(folder / SEAL)
    for name, (sealed_size, _) in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != sealed_size:
            holds = "is missing" if size is None else f"has {size:,} bytes, not {sealed_size:,}"
            raise ValueError(f"{str(folder / name)!r} {holds}: {COPY_AGAIN}")
    for name in _sealed_names(folder):
        is_loaded = name.endswith(LOADED_SUFFIXES) or PurePosixPath(name).name in LOADED_NAMES
        if is_loaded and name not in files:
            raise ValueError(
                f"{str(folder / name)!r} was added after the folder was sealed and would change "
                "what is loaded: move it elsewhere"
            )
    for name, digest in zip(files, _hashes(folder, list(files)), strict=True):
        if digest != files[name][1]:
            raise ValueError(
                f"{str(folder / name)!r} is not the file that was saved (its SHA-256 differs): "
                f"{COPY_AGAIN}"
            )
    return True


@cache
def log_unsealed(folder: Path) -> None:
    """Logs, once for each folder, that it is older than seals and loads unchecked."""
    logger.warning("%r has no %s: it loads unchecked; save it again to seal it", str(folder), SEAL)


def _read_seal(path: Path) -> dict[str, tuple[int, str]]:
    """Returns size and hash of each file that a seal lists."""
    record = read_json(path, COPY_AGAIN)
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {record.get('format')!r}, and this version reads {FORMAT}: "
            "upgrade Panoply"
        )
    with reading(path, COPY_AGAIN):
        files: dict[str, tuple[int, str]] = {}
        for name, entry in record["files"].items():
            parts = PurePosixPath(name).parts
            if not 0 < len(name) < LONGEST_NAME or "\0" in name or {"/", ".."} & set(parts):
                raise ValueError(f"it names {name[:40]!r}, which is no file of the folder")
            size, digest = entry["bytes"], entry["sha256"]
            if type(size) is not int or type(digest) is not str:
                raise ValueError(f"what it says of {name!r} is no size and hash")
            files[name] = size, digest
        return files


def _sealed_names(folder: Path) -> list[str]:
    """Returns the sorted names, relative to the folder, of the files that loading may read."""
    names: list[str] = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not is_hidden and path.suffix != ".md" and path.name != SEAL:
            names.append(relative.as_posix())
    return sorted(names)


def _hashes(folder: Path, names: Sequence[str]) -> list[str]:
    def sha256(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(HASHERS) as pool:  # hashing releases the interpreter
        return list(pool.map(sha256, names))
