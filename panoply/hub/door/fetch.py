"""Folders of models by their names: local ones, and those of the hub."""

from __future__ import annotations

import re
from pathlib import Path

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Files fetched from a hub: configuration, weights and tokenizer. Never a pickle."""
MARKS = ("panoply.json", "adapter_config.json", "config.json")
"""Files by which a folder is known to hold a model."""


def fetch(name: str | Path, *, code: bool = False, revision: str = "") -> Path:
    """Returns the folder of a model: a local one, or one of the hub, fetched once.

    Args:
        name: a folder, or a hub name 'owner/name'.
        code: fetch Python files too.
        revision: branch, tag or commit on the hub; empty: its main branch.

    Raises:
        FileNotFoundError: neither a folder, nor a hub name that can be had.
        ValueError: a revision of a local folder.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision:
            raise ValueError(
                f"`revision` is {revision!r}, but {str(name)!r} is a local folder, which has none: "
                "leave it out"
            )
        return folder
    if folder.is_file():
        raise FileNotFoundError(
            f"model {str(name)!r} is a file: name its folder, {str(folder.parent)!r}"
        )
    if not is_hub_name(str(name)):
        raise FileNotFoundError(
            f"model {str(name)!r} is neither a folder nor a hub name 'owner/name'"
        )
    patterns = [*FILES, "*.py"] if code else [*FILES]
    try:
        return Path(
            snapshot_download(str(name), revision=revision or None, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model {str(name)!r} is no local folder, and the hub could not give it: "
            f"{str(error).splitlines()[0]} Name a local folder, or fetch it with a network"
        ) from error


def is_hub_name(name: str) -> bool:
    """Returns whether a name may be one of the hub, 'owner/name'."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_holds_model(folder: Path) -> None:
    """Checks that a folder holds a model, and names a folder inside that does, if one does.

    Raises:
        FileNotFoundError: it holds none.
    """
    if any((folder / mark).is_file() for mark in MARKS[:2]):
        return
    from panoply.hub.door.checkpoint import read_fields  # loads torch

    config = folder / MARKS[2]
    # A run has a config.json of its own, which names no model.
    if config.is_file() and {"model_type", "architectures"} & read_fields(config).keys():
        return
    below = _models_below(folder)
    advice = "A run leaves one in OUT/model"
    if below:
        advice = f"Try {' or '.join(str(each) for each in below[:3])}"
    raise FileNotFoundError(
        f"{str(folder)!r} is no reward model folder: it has no panoply.json and no model's "
        f"config.json. {advice}"
    )


def _models_below(folder: Path) -> list[Path]:
    """Returns the folders inside of a folder that hold a model, the nearest ones."""
    for depth in ("*", "*/*"):
        if files := [file for mark in MARKS for file in folder.glob(f"{depth}/{mark}")]:
            return sorted({file.parent for file in files})
    return []
