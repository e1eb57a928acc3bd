"""Files and folders that are whole or absent: written beside their place, synced, then renamed.

A file of a run is read under `reading`, so that a damaged one is named with what to do.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

RUN_AGAIN = "delete it and run the same command again"
"""Advice for a damaged file that the same command makes again."""


def cache_root() -> Path:
    """Returns the folder of this machine's caches: `PANOPLY_CACHE`, else `~/.cache/panoply`."""
    return Path(os.environ.get("PANOPLY_CACHE") or Path.home() / ".cache" / "panoply")


class Guard(Protocol):
    """A right to write below a folder."""

    def check(self) -> None:
        """Checks that this process still has the right.

        Raises:
            OSError: it has not.
        """
        ...


GUARDS: dict[Path, Guard] = {}
"""Guards by folder, checked before anything below that folder is replaced (`panoply.lease`)."""


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yields a path beside `path` to write to; on exit, syncs that file and renames it to `path`.

    A reader sees the old content or all of the new. Writers of the same path, in any process, do
    not meet. An exception in the block leaves `path` as it was, and nothing beside it.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full.
    """
    # The name is hidden, so that readers of the folder pass over what a killed writer leaves. The
    # suffix stays last: NumPy appends its own to a name without it.
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part{path.suffix}")
    try:
        with _disk_errors(path):
            yield partial
            _sync(partial)
            _check_guards(path)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path, *, keeps_earlier: bool = False) -> Generator[Path]:
    """Yields a new folder beside `path`, which takes the place of `path` when the block ends.

    All its files are synced first. An exception in the block leaves `path` as it was, and nothing
    beside it.

    Args:
        path: the folder.
        keeps_earlier: whether a folder that is there by then stays, and the new one is dropped:
            whoever made it meant the same content, and somebody may be reading it.

    Raises:
        OSError: the folder above cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{secrets.token_hex(8)}"
    built, before = path.with_name(f"{name}.part"), path.with_name(f"{name}.before.part")
    built.mkdir()
    try:
        with _disk_errors(path):
            yield built
            for folder, _, names in os.walk(built):
                for file in names:
                    # safetensors leaves its files to their owner alone.
                    (Path(folder) / file).chmod(0o644)
                    _sync(Path(folder) / file)
                sync_folder(Path(folder))
            _check_guards(path)
            if path.exists() and not keeps_earlier:
                path.rename(before)
            if not path.exists():
                built.rename(path)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def create_once(path: Path, content: bytes) -> bool:
    """Creates a file that may exist once; returns False where it exists already.

    Of any number of writers, in any process, exactly one gets True. The file is whole and synced.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with partial.open("xb") as file:
            file.write(content)
        _sync(partial)
        _check_guards(path)
        # A rename would replace what is there; a link fails. File systems over a network that have
        # no links at least create exclusively.
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with path.open("xb") as file:
                file.write(content)
            _sync(path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def remove_partial_files(folder: Path) -> None:
    """Removes what killed writers left in a folder that nobody else writes now."""
    for partial in list(folder.rglob(".*.part*")):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside a folder survive a crash of the machine."""
    _sync(folder)


def write_whole(path: Path, content: str) -> None:
    """Writes a text file in UTF-8; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file of strict JSON: numbers that are not finite become null; see `whole_file`."""
    write_whole(path, json.dumps(_finite(values), indent=1, allow_nan=False))


@contextmanager
def reading(path: Path, way_out: str = RUN_AGAIN) -> Generator[None]:
    """Names the file where what reads it in the block finds it damaged.

    Args:
        path: the file; the block does nothing but read it.
        way_out: advice for the case that it is damaged.

    Raises:
        FileNotFoundError, PermissionError: as they come.
        ValueError: the file is cut off or otherwise damaged.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # each format has errors of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{str(path)!r} is damaged ({reason:.120}): {way_out}") from error


def read_json(path: Path, way_out: str = RUN_AGAIN) -> dict[str, Any]:
    """Returns the object in a JSON file; see `reading`.

    Raises:
        FileNotFoundError, PermissionError: as they come.
        ValueError: the file is damaged or holds no object.
    """
    with reading(path, way_out):
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        return values  # pyright: ignore[reportUnknownVariableType]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_guards(path: Path) -> None:
    for folder, guard in list(GUARDS.items()):
        if path.is_relative_to(folder):
            guard.check()


@contextmanager
def _disk_errors(path: Path) -> Generator[None]:
    """Turns the errors by which libraries report a full disk into OSError.

    safetensors and tokenizers write the number into their message, and PyTorch's archive writer
    fails on top of the error of the file below.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _disk_error(error: BaseException | None) -> int | None:
    """Returns the number of the error of the operating system behind an exception, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value
