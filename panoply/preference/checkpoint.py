"""Checkpoints of training: one sealed folder a checkpoint, the newest whole one is resumed from.

A state is a nested mapping of tensors, numbers and texts, as `torch.load` reads it without running
code.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from panoply.files import reading, whole_file, whole_folder
from panoply.seal import check_seal, seal

CHECKPOINTS = "step-????????*"
STATE = "state.pt"

logger = logging.getLogger(__name__)


def save_checkpoint(state: Mapping[str, Any], folder: Path, step: int) -> None:
    """Writes the checkpoint of a step, which appears when it is whole.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with whole_folder(folder / f"step-{step:08d}") as built:
        save_tensors(state, built / STATE)
        seal(built)


def newest_checkpoint(folder: Path) -> Mapping[str, Any] | None:
    """Returns the state of the newest checkpoint that is whole; None where there is none.

    A damaged one is logged with the file and passed over: the run then repeats a few steps, and
    ends with the same numbers.
    """
    for checkpoint in sorted(folder.glob(CHECKPOINTS), reverse=True):
        # Before checkpoints were sealed, one was a file.
        path = checkpoint / STATE if checkpoint.is_dir() else checkpoint
        try:
            if checkpoint.is_dir():
                check_seal(checkpoint, required=True)
            return load_tensors(path, "an earlier one is taken")
        except (ValueError, FileNotFoundError) as error:
            logger.warning("checkpoint passed over: %s", error)
    return None


def remove_checkpoints(folder: Path, *, keep: int = 0) -> None:
    """Removes all checkpoints but the newest `keep`."""
    oldest_first = sorted(folder.glob(CHECKPOINTS))
    for checkpoint in oldest_first[: len(oldest_first) - keep]:
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
        else:
            checkpoint.unlink()


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Writes a nested mapping of tensors; see `panoply.files.whole_file`."""
    # Through a file of Python's, whose error on a full disk names the reason.
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(dict(state), file)


def load_tensors(path: Path, way_out: str) -> Mapping[str, Any]:
    """Returns what `save_tensors` wrote, on the CPU; runs no code of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    with reading(path, way_out):
        return torch.load(path, weights_only=True, map_location="cpu")
