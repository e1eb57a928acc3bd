"""Models that are merged: what is read of their folders, and the checks that they fit together.

A reward model comes first. Behind it stand policies, of which the backbone alone is read, and
reward models that are its equals, whose heads are merged too. Nothing but headers, configurations
and tokenizers is read here, and a sample of tensors for the distance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from panoply.hub.artefact.manifest import MANIFEST, ScalarManifest, check_sealed, read_manifest
from panoply.hub.door.checkpoint import Checkpoint, Shape, few
from panoply.hub.door.loading import load_config, load_tokenizer
from panoply.hub.published.heads import tensors_beside, value_head_of
from panoply.seal import check_seal

FARTHEST = 0.5
"""Distance from which models are taken for unrelated. Unrelated weights of one size lie about the
square root of 2 apart, and a model from what it was fine-tuned from by a few per cent."""
COMPARED_TENSORS = 32
"""Tensors that a distance is the median of, from all depths."""
BESIDE_FORWARD = (
    "architectures attention_dropout bos_token_id dtype eos_token_id id2label initializer_range "
    "label2id max_position_embeddings max_window_layers num_hidden_layers num_labels pad_token_id "
    "problem_type tie_word_embeddings transformers_version use_cache vocab_size"
)
"""Fields of a configuration in which a policy may differ from a reward model of its base."""
LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""Number of a layer in the name of a tensor."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """The backbone that models share, by its class: names and shapes of its tensors."""

    prefix: str
    """Name of the backbone inside of a model, with a dot behind it."""
    shapes: Mapping[str, Shape]
    embedding: str
    """Tensor with a row for each token."""

    @classmethod
    def of(cls, config: Any) -> Trunk:
        """Returns the backbone of a configuration; no memory is asked for."""
        from transformers import AutoModel

        with torch.device("meta"):
            model = cast(Any, AutoModel.from_config(config))
        parameters = dict(model.named_parameters())
        rows = model.get_input_embeddings().weight
        return cls(
            prefix=f"{model.base_model_prefix}.",
            shapes={name: tuple(tensor.shape) for name, tensor in parameters.items()},
            embedding=next(name for name, tensor in parameters.items() if tensor is rows),
        )


@dataclass(frozen=True, slots=True)
class Operand:
    """A model that is merged, or the base of all."""

    folder: Path
    checkpoint: Checkpoint
    config: Any
    prefix: str
    """Beginning of the names of its backbone's tensors; empty where it is a backbone alone."""
    manifest: ScalarManifest | None
    """The record of a reward model of ours."""

    def read(self, name: str) -> Tensor:
        """Returns a tensor of the backbone by the name that the backbone has for it."""
        return self.checkpoint.read(self.prefix + name)

    def num_rows(self, trunk: Trunk) -> int:
        """Returns the rows of the embedding."""
        return self.checkpoint.shapes[self.prefix + trunk.embedding][0]

    def tokenizer(self) -> Any:
        """Returns the tokenizer."""
        return load_tokenizer(self.folder)


def open_operand(folder: Path, trunk: Trunk | None = None) -> tuple[Operand, Trunk]:
    """Returns a model and the backbone that it has, or must have.

    Args:
        folder: of the model.
        trunk: backbone of the reward model that it is merged with; None: its own.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: it is of a kind that is not merged, damaged, or lacks a tensor of the backbone.
    """
    manifest = None
    if (folder / MANIFEST).is_file():
        manifest = _scalar_manifest(folder)
        check_sealed(folder, manifest)
    else:
        check_seal(folder)
    config, checkpoint = load_config(folder), Checkpoint.open(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{str(folder)!r} holds quantized weights, which are not merged: name the checkpoint "
            "that is not quantized"
        )
    trunk = trunk or Trunk.of(config)
    inside = any(name.startswith(trunk.prefix) for name in checkpoint.shapes)
    operand = Operand(folder, checkpoint, config, trunk.prefix if inside else "", manifest)
    return operand, trunk


def check_fits(operand: Operand, first: Operand, trunk: Trunk) -> None:
    """Checks that a model has the backbone of the reward model that it is merged with.

    Its vocabulary and its number of layers may differ: the reward model's first layers count.

    Raises:
        ValueError: it differs in another way, which is named with both values.
    """
    both_ours = operand.manifest is not None and first.manifest is not None
    here = _forward_fields(operand.config) | (_record(operand.manifest) if both_ours else {})
    there = _forward_fields(first.config) | (_record(first.manifest) if both_ours else {})
    for name in {**there, **here}:
        a, b = here.get(name), there.get(name)
        if isinstance(a, list) and isinstance(b, list):  # a kind by layer
            a, b = a[: len(b)], b[: len(a)]
        if a != b:
            raise ValueError(
                f"{str(operand.folder)!r} cannot be merged with {str(first.folder)!r}: its {name} "
                f"is {a!r:.200}, there it is {b!r:.200}. Merge models that were trained from the "
                "same backbone in the same way"
            )
    stored = operand.checkpoint.shapes
    shapes = {
        operand.prefix + name: (stored.get(operand.prefix + name, shape)[0], *shape[1:])
        if name == trunk.embedding
        else shape
        for name, shape in trunk.shapes.items()
    }
    operand.checkpoint.check(shapes, f"a merge with {str(first.folder)!r}")
    depth = first.config.get_text_config().num_hidden_layers
    surplus = [
        name
        for name in stored
        if name.startswith(operand.prefix) and name not in shapes and _layer_of(name) < depth
    ]
    if surplus:
        raise ValueError(
            f"{str(operand.folder)!r} holds {few(sorted(surplus))}, which "
            f"{str(first.folder)!r} has no place for: merge models of one architecture"
        )


def check_related(operand: Operand, first: Operand, apart: float) -> None:
    """Checks that a model was trained from the weights that a reward model was trained from.

    Args:
        operand: the model.
        first: the reward model.
        apart: their distance.

    Raises:
        ValueError: they lie too far apart for their mean to be a model.
    """
    if not apart <= FARTHEST:
        raise ValueError(
            f"{str(operand.folder)!r} was not trained from the weights that "
            f"{str(first.folder)!r} was trained from: their matrices differ by {apart:.2f} of "
            f"their norm in the median (most allowed {FARTHEST:g}; unrelated models have about "
            "1.41, fine-tuned ones a few hundredths). Merge models of one base"
        )


def distance(operand: Operand, first: Operand, trunk: Trunk) -> float:
    """Returns the median over matrices of |theta - theta_first| / |theta_first|.

    Vectors do not tell: norms start at one in every model. COMPARED_TENSORS matrices are read.
    """
    names = [n for n, s in trunk.shapes.items() if len(s) == 2 and n != trunk.embedding]
    ratios: list[float] = []
    for name in names[:: max(1, len(names) // COMPARED_TENSORS)]:
        here, there = operand.read(name).float(), first.read(name).float()
        ratios.append(float((here - there).norm() / there.norm()))
    return float(np.median(ratios))


def head_tensors(operand: Operand, trunk: Trunk) -> set[str]:
    """Returns the names of a published reward model's tensors that are its head."""
    prefix = operand.prefix or trunk.prefix
    return tensors_beside(operand.checkpoint, prefix)


def check_is_reward_model(first: Operand, trunk: Trunk) -> None:
    """Checks that a model has a head, which the merged one keeps.

    Raises:
        ValueError: it has none, or its files name no backbone inside of a model.
    """
    has_head = bool(first.prefix and head_tensors(first, trunk))
    if not (first.manifest or has_head or value_head_of(first.checkpoint)):
        raise ValueError(
            f"{str(first.folder)!r} has no head of a reward model, and the first of the models "
            "gives the merged one its head: name the reward model first"
        )


def is_equal(operand: Operand, first: Operand, trunk: Trunk) -> bool:
    """Returns whether a model has the same kind of head, which is then merged too."""
    if first.manifest or operand.manifest:
        return first.manifest is not None and operand.manifest is not None
    names = head_tensors(first, trunk)
    here, there = operand.checkpoint.shapes, first.checkpoint.shapes
    return bool(names) and all(here.get(name) == there[name] for name in names)


def _scalar_manifest(folder: Path) -> ScalarManifest:
    manifest = read_manifest(folder)
    if not isinstance(manifest, ScalarManifest):
        raise ValueError(
            f"{str(folder)!r} is a gated reward model, whose gate was fitted to its backbone; name "
            "scalar models"
        )
    if manifest.members != "heads":
        raise ValueError(
            f"{str(folder)!r} consists of {manifest.members} beside a frozen backbone, which are "
            "not merged; name models that were trained with `members` 'heads'"
        )
    return manifest


def _forward_fields(config: Any) -> dict[str, Any]:
    """Returns the fields of a configuration that decide what its backbone computes."""
    fields = config.to_dict()
    passed_over = {*BESIDE_FORWARD.split(), *(name for name in fields if name.startswith("_"))}
    names = sorted(fields.keys() - passed_over, key=lambda name: (name != "model_type", name))
    return {f"config's {name}": fields[name] for name in names}


def _record(manifest: ScalarManifest | None) -> dict[str, Any]:
    """Returns what reward models of ours must share for their heads to have a mean."""
    assert manifest is not None
    return {
        "depth": manifest.depth,
        "number of heads": len(manifest.scales),
        "rule": (manifest.rule, manifest.caution),
        "chat template": manifest.template_hash,
        "rendering": manifest.rendering,
        "BOS rule": manifest.bos,
    }


def _layer_of(name: str) -> float:
    """Returns the number of the layer that a tensor is of; infinite where it is of none.

    Angles of rotary embeddings, which old checkpoints hold, are computed anew and count as none.
    """
    match = LAYER.search(name)
    return int(match[1]) if match and not name.endswith(".inv_freq") else float("inf")
