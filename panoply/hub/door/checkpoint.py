"""Checkpoints: the JSON and the tensors of a model folder, known before any tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open

from panoply.config import DType

Shape: TypeAlias = tuple[int, ...]
WEIGHTS = "model.safetensors"
POINTER_SIZE = 1024
"""Bytes below which the pointers of git's large-file extension stay."""
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.")
"""Beginnings of tensors' names in models that were saved inside of what wrapped them in training:
torch.compile, DistributedDataParallel, peft, FSDP."""
OTHER_WEIGHTS = {
    "zero_pp_rank_*": "shards of DeepSpeed, which its zero_to_fp32.py joins: run `python "
    "zero_to_fp32.py . . --safe_serialization` there",
    "*.distcp": "shards of FSDP: join them with `accelerate merge-weights`",
    "model_world_size_*": "shards of verl: join them with `python -m verl.model_merger merge`",
    "*.gguf": "weights for llama.cpp, which are never read: name the checkpoint that they were "
    "made of",
    "*.safetensors": "weights of another name: rename them where they are the whole model",
}
"""Files of weights in another form, and what makes model.safetensors of them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder: known by their headers, read when asked for."""

    folder: Path
    file_of: Mapping[str, Path]
    shapes: Mapping[str, Shape]

    @classmethod
    def open(cls, folder: Path, name: str = WEIGHTS) -> Checkpoint:
        """Reads the headers of a file, or of the shards that its index names.

        Links are followed, since the cache of the hub consists of them.

        Raises:
            FileNotFoundError: no safetensors, or a shard is missing.
            ValueError: a file is a pointer or cut short, or the index names one elsewhere.
        """
        index = folder / f"{name}.index.json"
        files = [folder / name]
        if index.is_file() and not files[0].is_file():
            files = _shards(index)
        file_of: dict[str, Path] = {}
        shapes: dict[str, Shape] = {}
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(_missing(folder, file.name))
            for key, shape in read_shapes(file).items():
                file_of[key] = file
                shapes[key] = shape
        if name == WEIGHTS:
            _check_unwrapped(shapes, folder)
        return cls(folder, file_of, shapes)

    def read(self, name: str) -> torch.Tensor:
        """Returns one tensor.

        Raises:
            ValueError: it holds a number that is not finite.
        """
        with safe_open(self.file_of[name], framework="pt") as opened:
            tensor = opened.get_tensor(name)
        check_finite({name: tensor}, self.folder)
        return tensor

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


def read_shapes(file: Path) -> dict[str, Shape]:
    """Returns the shapes of a safetensors file's tensors by its header alone.

    Raises:
        ValueError: it is a pointer, cut short, or no safetensors file.
    """
    check_no_pointer(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(_unreadable(file, error)) from error


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pointer, cut short, or no safetensors file, or a number in it is not
            finite.
    """
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(_missing(file.parent, file.name))
    check_no_pointer(file)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(_unreadable(file, error)) from error
    check_finite(tensors, file)
    return tensors


def read_fields(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a pointer, or no whole JSON object.
    """
    check_no_pointer(file)
    try:
        fields = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(file)!r} is no whole JSON ({error}): fetch it again, or restore it"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object: fetch it again, or restore it")
    return cast(dict[str, Any], fields)


def check_no_pointer(file: Path) -> None:
    """Checks that a file holds its content, and not what git leaves in its place.

    Raises:
        ValueError: it is the pointer of git's large-file extension.
    """
    if not file.is_file() or file.stat().st_size > POINTER_SIZE:
        return
    text = file.read_bytes()
    if text.startswith(b"version http") and b"\noid " in text:
        raise ValueError(
            f"{str(file)!r} is a pointer that git leaves without its large-file extension, and not "
            "the file itself: run `git lfs pull` in its folder, or fetch it with `hf download`"
        )


def check_finite(tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Checks that tensors hold numbers; types that are packed are left to their library.

    Raises:
        ValueError: NaN or infinity is among them.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ValueError(
                f"tensor {name!r} in {str(where)!r} holds NaN or infinity, so no score would be a "
                "number: fetch it again, or save it from before its training diverged"
            )


def few(names: Sequence[str]) -> str:
    """Returns the first names of a list that may be long."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def stored_dtype(fields: Mapping[str, Any]) -> DType:
    """Returns what a configuration says; half precision only where the hardware is fast at it."""
    stored = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    return "float32" if stored == "float32" else "auto"


def _shards(index: Path) -> list[Path]:
    """Returns the files that an index names, which lie in its folder.

    Raises:
        ValueError: it names none, or one elsewhere.
    """
    named = read_fields(index).get("weight_map")
    names: set[Any] = set(cast(dict[str, Any], named).values()) if isinstance(named, dict) else {0}
    for name in names or {0}:
        if not isinstance(name, str):
            raise ValueError(f"{str(index)!r} has no weight_map of file names: fetch it again")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{str(index)!r} names the file {name!r} outside of its folder, which is never "
                "read: fetch the checkpoint again, and put all shards beside the index"
            )
    return [index.parent / name for name in sorted(names)]


def _check_unwrapped(shapes: Mapping[str, Shape], folder: Path) -> None:
    """Checks that tensors are named as a model names them.

    Raises:
        ValueError: all their names begin with that of a wrapper.
    """
    for wrapper in WRAPPERS:
        if shapes and all(name.startswith(wrapper) for name in shapes):
            raise ValueError(
                f"all tensors in {str(folder)!r} have names that begin with {wrapper!r}, as a "
                "wrapped model's have: save the model inside of the wrapper (merge an adapter "
                "first), or take that beginning off the names"
            )


def _missing(folder: Path, name: str) -> str:
    """Returns the error for a file of weights that is not there."""
    for pattern, advice in OTHER_WEIGHTS.items() if name == WEIGHTS else ():
        if others := sorted(file.name for file in folder.rglob(pattern)):
            return f"{str(folder)!r} lacks {name} and holds {few(others)}, {advice}"
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickles:
        return (
            f"{str(folder)!r} lacks {name} and holds {few(pickles)}, a pickle, which is never "
            "read: convert it to safetensors where you trust it (load it with transformers, and "
            "call save_pretrained)"
        )
    return f"{str(folder)!r} lacks {name}: fetch it, or convert the weights to safetensors"


def _unreadable(file: Path, error: Exception) -> str:
    return (
        f"{str(file)!r} is cut short or no safetensors file ({error}): fetch it again; it has "
        f"{file.stat().st_size:,} bytes"
    )
