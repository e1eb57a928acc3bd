"""Checkpoints: the tensors of a model folder, known by their headers before any is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from panoply.config import DType

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder: known by their headers, read when asked for."""

    folder: Path
    file_of: Mapping[str, Path]
    shapes: Mapping[str, Shape]

    @classmethod
    def open(cls, folder: Path, name: str = "model.safetensors") -> Checkpoint:
        """Reads the headers of a file, or of the shards that its index names.

        Raises:
            FileNotFoundError: no safetensors, or a shard is missing.
        """
        index = folder / f"{name}.index.json"
        files = [folder / name]
        if index.is_file():
            named: dict[str, str] = json.loads(index.read_text())["weight_map"]
            files = [folder / name for name in sorted(set(named.values()))]
        file_of: dict[str, Path] = {}
        shapes: dict[str, Shape] = {}
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"{str(folder)!r} lacks {file.name}: fetch it, or convert the weights to "
                    "safetensors (a pickle is never read)"
                )
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    file_of[name] = file
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
        return cls(folder, file_of, shapes)

    def read(self, name: str) -> torch.Tensor:
        """Returns one tensor."""
        with safe_open(self.file_of[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def check(self, expected: Mapping[str, Shape], why: str) -> None:
        """Checks names and shapes.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, shape in expected.items():
            stored = self.shapes.get(name)
            if stored != shape:
                state = "is missing" if stored is None else f"has shape {list(stored)}"
                raise ValueError(
                    f"tensor {name!r} in {str(self.folder)!r} {state}; {why} asks for "
                    f"{list(shape)}. Fetch the checkpoint again, or mend its config.json"
                )


def few(names: Sequence[str]) -> str:
    """Returns the first names of a list that may be long."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def stored_dtype(fields: Mapping[str, Any]) -> DType:
    """Returns what a configuration says; half precision only where the hardware is fast at it."""
    stored = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    return "float32" if stored == "float32" else "auto"
