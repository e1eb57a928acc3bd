"""Files behind a name: a path, a folder, a pattern, a folder that `datasets` saved, or a URI.

A URI is opened by pyarrow (`s3://`, `gs://`, `hf://`, `file://`) or else by fsspec. Credentials
come from where those libraries take them.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from panoply.data.data_file import SUFFIXES, DataFile
from panoply.secret import check_file_uri

GENERIC_NAMES = ("train", "test", "validation", "val", "dev", "data", "default", "dataset")
"""Names of files and folders that say nothing of the data set: their folder's name counts."""
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside data."""
PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceName:
    """Default name of a source, and the folders that tell it from another of the same name."""

    name: str
    folders: tuple[str, ...] = ()
    """From the outermost to the one that holds the source."""

    def qualified(self, num_folders: int) -> str:
        """Returns the name behind those of its innermost folders."""
        folders = self.folders[len(self.folders) - num_folders :] if num_folders else ()
        return "-".join([*folders, self.name])


def source_name(path: str) -> SourceName:
    """Returns the name of a file's source: its stem without shard numbers, else its folder's."""
    parts = list(PurePosixPath(path).parts)
    parts[-1] = re.sub(r"-\d+(-of-\d+)?$", "", parts[-1].split(".")[0])
    while len(parts) > 1 and parts[-1] in GENERIC_NAMES:
        parts.pop()
    return SourceName(parts[-1], tuple(part for part in parts[:-1] if part != "/"))


def find_files(where: str | Path) -> list[DataFile]:
    """Returns the files behind a path, folder, pattern or URI; none where nothing is there.

    Raises:
        ValueError: a folder without data, or a URI that cannot be opened or holds a secret.
    """
    name = str(where)
    check_file_uri(name, "data")
    if "://" not in name:
        path = str(Path(name).expanduser())
        filesystem: pafs.FileSystem = pafs.LocalFileSystem()
        if PATTERN.search(name) and not Path(path).exists():
            paths = [match for match in glob.glob(path, recursive=True) if Path(match).is_file()]
        else:
            paths = _files_at(filesystem, path)
        return [DataFile(inner, filesystem, inner) for inner in sorted(filter(_is_data, paths))]

    try:
        filesystem, path = _open_uri(name)
        if PATTERN.search(path):
            fixed = path[: path.index(PATTERN.findall(path)[0])].rpartition("/")[0]
            paths = fnmatch.filter(_listed(filesystem, fixed, recursive=True), path)
        else:
            paths = _files_at(filesystem, path)
    except OSError as error:
        raise ValueError(f"{name!r} cannot be read ({type(error).__name__}: {error})") from error
    scheme = name.partition("://")[0]
    labels = {inner: f"{scheme}://{inner.lstrip('/')}" for inner in sorted(filter(_is_data, paths))}
    return [DataFile(label, filesystem, inner) for inner, label in labels.items()]


def _open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        import fsspec.core  # slow to load, and only for schemes that pyarrow has not

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{uri!r} cannot be opened: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(path)


def _is_data(path: str) -> bool:
    name = PurePosixPath(path).name
    return not (name.startswith(".") or name.endswith("quarantine.jsonl") or name in NO_DATA)


def _files_at(filesystem: pafs.FileSystem, path: str) -> list[str]:
    match filesystem.get_file_info(path).type:
        case pafs.FileType.File:
            return [path]
        case pafs.FileType.Directory:
            return _in_folder(filesystem, path)
        case _:
            return []


def _listed(filesystem: pafs.FileSystem, folder: str, *, recursive: bool) -> list[str]:
    selector = pafs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    return [info.path for info in filesystem.get_file_info(selector) if info.is_file]


def _in_folder(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Returns the files of a folder: what `datasets` says, else those in it, else those below it.

    Raises:
        FileNotFoundError: one that `datasets` saved is not there.
        ValueError: there is none.
    """
    direct = _listed(filesystem, folder, recursive=False)
    names = {PurePosixPath(path).name: path for path in direct}
    if "dataset_dict.json" in names:
        splits = _read_json(filesystem, names["dataset_dict.json"])["splits"]
        parts = [_in_folder(filesystem, f"{folder.rstrip('/')}/{split}") for split in splits]
        return [path for part in parts for path in part]
    if "state.json" in names:
        state = _read_json(filesystem, names["state.json"])
        stored: list[str] = [entry["filename"] for entry in state.get("_data_files", ())]
        if missing := [name for name in stored if name not in names]:
            raise FileNotFoundError(
                f"folder {folder!r} lacks {missing[0]}, which its state.json names: copy it too"
            )
        return [names[name] for name in stored]
    for paths in (direct, _listed(filesystem, folder, recursive=True)):
        chosen = [
            path for path in paths if _is_data(path) and DataFile("", filesystem, path).suffix
        ]
        if chosen:
            return chosen
    raise ValueError(f"folder {folder!r} holds no file ending in {', '.join(SUFFIXES)}")


def _read_json(filesystem: pafs.FileSystem, path: str) -> Any:
    with filesystem.open_input_stream(path) as file:
        try:
            return json.loads(file.read())
        except ValueError as error:
            raise ValueError(f"{path!r} is no whole JSON ({error}): copy it again") from error
