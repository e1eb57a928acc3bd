"""A merge: models that fit together, and each tensor of the reward model that they become.

The backbone is merged tensor by tensor (`rules`), its embedding by tokens (`vocabulary`). The head
is the reward model's, or the mean of the heads where others are its equals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoply.config.merge import MergeRule
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.merge.operands import (
    Operand,
    Trunk,
    check_fits,
    check_is_reward_model,
    check_related,
    distance,
    head_tensors,
    is_equal,
    open_operand,
)
from panoply.hub.merge.rules import merge_tensors, weights_of
from panoply.hub.merge.vocabulary import Vocabulary, unite
from panoply.hub.published.heads import OUTPUT_LAYER

HEADS = "heads.safetensors"
"""Heads of a reward model of ours."""


@dataclass(frozen=True, slots=True)
class MergedFit:
    """Numbers of a merged reward model of ours beside its weights."""

    temperature: float
    centers: tuple[float, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Merge:
    """Models that fit together, with the weight of each."""

    models: tuple[Operand, ...]
    """The reward model, and those behind it."""
    base: Operand | None
    trunk: Trunk
    weights: tuple[float, ...]
    rule: MergeRule
    density: float = 1.0
    seed: int = 0

    @property
    def first(self) -> Operand:
        """The reward model that the merged one is made like."""
        return self.models[0]

    @property
    def others(self) -> list[Operand]:
        """The models behind it, and then the base."""
        return [*self.models[1:], *([self.base] if self.base else [])]

    @cached_property
    def are_equals(self) -> tuple[bool, ...]:
        """Tells for each model whether its head is merged."""
        others = [is_equal(model, self.first, self.trunk) for model in self.models[1:]]
        return (True, *others)

    @cached_property
    def head_weights(self) -> list[float]:
        """Weights of the heads: those of the models that have one, brought to the sum 1.

        Where the others have all the weight and none of them has a head, the first's stays.
        """
        rows = zip(self.weights, self.are_equals, strict=True)
        left = [weight if equal else 0.0 for weight, equal in rows]
        if not (total := sum(left)):
            return [1.0, *left[1:]]
        return [weight / total for weight in left]

    @cached_property
    def distances(self) -> list[float]:
        """Distance from the reward model of each of the others; see `operands.distance`."""
        return [distance(model, self.first, self.trunk) for model in self.others]

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabularies united; None where all are the same."""
        models = [self.first, *self.others]
        sizes = [model.num_rows(self.trunk) for model in models]
        return unite([model.tokenizer() for model in models], sizes, has_base=bool(self.base))

    def at(self, share: float) -> Merge:
        """Returns the merge with another weight of the models behind the first, together."""
        weights = weights_of(self.rule, share, len(self.models))
        return replace(self, weights=tuple(weights))

    def tensor(self, stored: str) -> Tensor:
        """Returns a tensor of the merged model by its name in the reward model's files.

        The head of a reward model of ours is returned as it is: see `heads`.
        """
        name = stored.removeprefix(self.first.prefix)
        if name in self.trunk.shapes and stored == self.first.prefix + name:
            values = [model.read(name) for model in (self.first, *self.others)]
            if name == self.trunk.embedding and self.vocabulary:
                return self.vocabulary.merged(
                    lambda aligned: self._merged(aligned, name), values[0], values[1:]
                )
            return self._merged(values, name)
        if not self.first.manifest and stored in head_tensors(self.first, self.trunk):
            equals = [(m, w) for m, w in zip(self.models, self.head_weights, strict=True) if w]
            values = [model.checkpoint.read(stored) for model, _ in equals]
            return merge_tensors("linear", values, [weight for _, weight in equals])
        tensor = self.first.checkpoint.read(stored)
        if stored == OUTPUT_LAYER and self.vocabulary:  # which no score comes from
            more = tensor.new_zeros(self.vocabulary.num_rows - len(tensor), tensor.shape[1])
            return torch.cat([tensor, more])
        return tensor

    def heads(self) -> tuple[Tensor, MergedFit]:
        """Returns the heads `[K, D]` of reward models of ours, and the means of their numbers.

        The temperature, which is of none of them, is 1.
        """
        heads: list[Tensor] = []
        records: list[ScalarManifest] = []
        weights: list[float] = []
        for model, weight in zip(self.models, self.head_weights, strict=True):
            if weight and model.manifest:
                heads.append(read_tensors(model.folder / HEADS)["heads"])
                records.append(model.manifest)
                weights.append(weight)
        center_K = np.array(weights) @ np.array([record.centers for record in records])
        scale_K = np.array(weights) @ np.array([record.scales for record in records])
        means = MergedFit(1.0, tuple(center_K.tolist()), tuple(scale_K.tolist()))
        return merge_tensors("linear", heads, weights), means

    def _merged(self, values: Sequence[Tensor], name: str) -> Tensor:
        """Returns the merge of the models' tensors, behind which the base's stands."""
        return merge_tensors(
            self.rule,
            values[: len(self.models)],
            self.weights,
            base=values[-1] if self.base else None,
            density=self.density,
            seed=self.seed + list(self.trunk.shapes).index(name),
        )


def open_merge(
    folders: Sequence[Path],
    share: float = 0.0,
    *,
    base: Path | None = None,
    rule: MergeRule = "linear",
    density: float = 1.0,
    seed: int = 0,
) -> Merge:
    """Returns models as a merge, once they fit together; of their weights few are read.

    Args:
        folders: the reward model, and those behind it.
        share: weight of the models behind the first, together.
        base: model that all were trained from.
        rule: of merging, and its numbers; see `rules`.
        density: share of the changes that ties and dare keep.
        seed: of the changes that dare keeps.

    Raises:
        FileNotFoundError: a folder is no model, or lacks a file.
        ValueError: the first is no reward model, one has another architecture or template, or one
            was not trained from the same weights.
    """
    first, trunk = open_operand(folders[0])
    check_is_reward_model(first, trunk)
    shapes = {first.prefix + name: shape for name, shape in trunk.shapes.items()}
    first.checkpoint.check(shapes, "its config.json")
    others = [open_operand(folder, trunk)[0] for folder in folders[1:]]
    origin = open_operand(base, trunk)[0] if base else None
    for model in (*others, *([origin] if origin else [])):
        check_fits(model, first, trunk)
    weights = tuple(weights_of(rule, share, len(folders)))
    merge = Merge((first, *others), origin, trunk, weights, rule, density, seed)
    for model, value in zip(merge.others, merge.distances, strict=True):
        check_related(model, first, value)
    return merge
