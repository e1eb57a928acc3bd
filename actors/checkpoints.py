"""Checkpoints of a run in its folder, numbered by step; one that is there is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

KEPT = 2
"""The newest ones that stay."""


def newest(folder: Path) -> dict[str, Any] | None:
    """Returns the latest state, or None where there is none."""
    found = sorted(folder.glob("step-*.pt"))
    return torch.load(found[-1], weights_only=True, map_location="cpu") if found else None


def save(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes a state; the one before it stays until this one is whole, and for a while after."""
    path = folder / f"step-{step:08d}.pt"
    torch.save(dict(state), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink()


def clear(folder: Path) -> None:
    """Removes all states."""
    for old in folder.glob("step-*.pt"):
        old.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(value))
    partial.rename(path)
