"""Heads of published reward models: which are known by the names of their tensors, and filled.

    linear       s = w . z + b
    layers       s = w_n . relu( ... relu(W_1 z + b_1) ... ) + b_n

z is the state at the last token. Value heads are those of trainers with one (TRL, LLaMA-Factory's
`value_head.safetensors`) and of GRM (Ray2333/GRM-*, arXiv 2406.10216), beside a language model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from panoply.hub.door.checkpoint import Checkpoint, Shape, few

LINEAR_NAMES = ("score", "value_head")
VALUE_HEAD = "v_head.summary"
VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_HEAD_PICKLE = "value_head.bin"
LAYER = re.compile(r"(\d+)\.(weight|bias)")
OUTPUT_LAYER = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class StoredHead:
    """The tensors of a head and the place where they are."""

    checkpoint: Checkpoint
    stem: str
    """Name of the head, before its tensors' own names."""
    names: tuple[str, ...]
    """Names of its tensors behind the stem, `weight` or `0.weight`."""

    @property
    def is_linear(self) -> bool:
        """Says whether the head is one layer, with a bias or without."""
        return set(self.names) in ({"weight"}, {"weight", "bias"})

    @property
    def is_layered(self) -> bool:
        """Says whether the head is two linear layers or more, with ReLU between."""
        weights, biases = self._shapes("weight"), self._shapes("bias")
        places = sorted(weights)
        is_whole = len(self.names) == len(weights) + len(biases) and weights.keys() == biases.keys()
        return is_whole and len(places) > 1 and places == list(range(0, 2 * len(places), 2))

    @property
    def num_outputs(self) -> int:
        """Number of scores that it gives."""
        shapes = self._shapes("weight")
        return shapes[max(shapes)][0] if shapes else 0

    def filled(self, size: int, num_outputs: int = 1) -> nn.Module:
        """Returns the head as a module.

        Args:
            size: width of the backbone's states.
            num_outputs: 1 of a score, 2 of the classes of a step.

        Raises:
            ValueError: a tensor has another shape than a head with so many outputs has, or a number
                in it is not finite.
        """
        outputs = "one score" if num_outputs == 1 else f"{num_outputs} classes"
        if self.is_linear:
            linear = nn.Linear(size, num_outputs, "bias" in self.names)
            return self._fill(linear, f"a linear head with {outputs}")
        layers: list[nn.Module] = []
        width, shapes = size, self._shapes("weight")
        for place in sorted(shapes):
            is_last = place == max(shapes)
            layers += [nn.Linear(width, num_outputs if is_last else shapes[place][0]), nn.ReLU()]
            width = shapes[place][0]
        whole = f"a head of {len(shapes)} layers with {outputs}"
        return self._fill(nn.Sequential(*layers[:-1]), whole)

    def _fill(self, head: nn.Module, kind: str) -> nn.Module:
        shapes = {f"{self.stem}.{k}": tuple(v.shape) for k, v in head.state_dict().items()}
        self.checkpoint.check(shapes, kind)
        tensors = {k: self.checkpoint.read(f"{self.stem}.{k}") for k in head.state_dict()}
        head.load_state_dict(tensors)
        return head

    def _shapes(self, kind: str) -> Mapping[int, Shape]:
        """Returns the shapes of the layers' weights or biases, by their place."""
        shapes: dict[int, Shape] = {}
        for name in self.names:
            match = LAYER.fullmatch(name)
            if name == kind or (match and match[2] == kind):
                place = int(match[1]) if match else 0
                shapes[place] = self.checkpoint.shapes[f"{self.stem}.{name}"]
        return shapes


def head_under(checkpoint: Checkpoint, stem: str) -> StoredHead | None:
    """Returns the head of a name, or None where there is no tensor of it."""
    prefix = f"{stem}."
    names = sorted(
        name.removeprefix(prefix) for name in checkpoint.shapes if name.startswith(prefix)
    )
    return StoredHead(checkpoint, stem, tuple(names)) if names else None


def value_head_of(checkpoint: Checkpoint) -> StoredHead | None:
    """Returns the value head beside a language model: in its own file, or in the model's.

    Raises:
        ValueError: it is of a layout that is not known.
    """
    folder = checkpoint.folder
    if (folder / VALUE_HEAD_FILE).is_file():
        checkpoint = Checkpoint.open(folder, VALUE_HEAD_FILE)
    elif (folder / VALUE_HEAD_PICKLE).is_file():
        raise ValueError(
            f"{str(folder)!r} has its value head in {VALUE_HEAD_PICKLE}, a pickle, which is never "
            "read: where you trust it, write what torch.load(FILE, weights_only=True) gives to "
            f"{VALUE_HEAD_FILE} with safetensors.torch.save_file"
        )
    head = head_under(checkpoint, VALUE_HEAD)
    beside = sorted(name for name in checkpoint.shapes if "v_head." in name)
    is_whole = head is not None and len(beside) == len(head.names) and head.num_outputs == 1
    if head and is_whole and (head.is_linear or head.is_layered):
        return head
    if beside or (folder / VALUE_HEAD_FILE).is_file():
        raise ValueError(
            f"{str(folder)!r} has a value head that is not known: "
            f"{few(beside or sorted(checkpoint.shapes))}. Known are {VALUE_HEAD}.weight and .bias "
            f"(TRL, LLaMA-Factory's {VALUE_HEAD_FILE}), and {VALUE_HEAD}.0, .2, ... (GRM), each "
            "with one output"
        )
    return None


def tensors_beside(checkpoint: Checkpoint, prefix: str) -> set[str]:
    """Returns the tensors that are neither of the backbone nor the language model's output."""
    return {
        name for name in checkpoint.shapes if not name.startswith(prefix) and name != OUTPUT_LAYER
    }


def trained_head(folder: Path) -> StoredHead | None:
    """Returns the linear head with one score that a folder brings, or None.

    Training goes on from it. Only headers are read here.

    Raises:
        FileNotFoundError, ValueError: the folder's weights cannot be read.
    """
    checkpoint = Checkpoint.open(folder)
    heads = [head_under(checkpoint, stem) for stem in LINEAR_NAMES]
    if (folder / VALUE_HEAD_FILE).is_file() or head_under(checkpoint, VALUE_HEAD):
        heads.append(value_head_of(checkpoint))
    return next((head for head in heads if head and head.is_linear and head.num_outputs == 1), None)


def unknown_head(folder: Path, architecture: str, names: Collection[str], deeper: str) -> str:
    """Returns the error for a head that is not known.

    Args:
        folder: of the checkpoint.
        architecture: as its configuration names it.
        names: tensors of the head.
        deeper: layouts whose head may have two layers.
    """
    return (
        f"{str(folder)!r} ({architecture}) has a head that is not known: "
        f"{few(sorted(names))}. Known are {' or '.join(LINEAR_NAMES)} (one layer), score.0 and "
        f"score.2 of {deeper}, and {VALUE_HEAD} beside a language model"
    )


def labels_error(head: StoredHead, num_labels: Any, num_outputs: int = 1) -> str:
    """Returns the error for a configuration that says another number of outputs than it should."""
    file = str(head.checkpoint.folder / "config.json")
    if num_outputs > 1:
        return (
            f"{file!r} has num_labels {num_labels}, and a process reward model has {num_outputs}: "
            f"the probability that a step is wrong, and that it is right; {head.stem}.* gives "
            f"{head.num_outputs} numbers"
        )
    text = (
        f"{file!r} has num_labels {num_labels} (2 where it does not say), and a reward model has 1"
    )
    if head.num_outputs == 1:
        return (
            f'{text}: write "num_labels": 1 there in place of id2label, since {head.stem}.weight '
            "gives one score"
        )
    return (
        f"{text}: {head.stem}.weight gives {head.num_outputs} numbers, labels of a classifier or "
        "several attributes; name a model with one score"
    )
