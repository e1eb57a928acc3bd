"""Gated multi-objective reward models as folders: save, load, score and explain.

`config.json` and `model.safetensors` (the cut backbone and the head), the tokenizer, and
`panoply.json` with what else scoring depends on. `baselines.safetensors` holds the fixed scorers
that the gate was compared with, `seen.npy` hashes of the split keys that training used.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from safetensors.torch import save_file

from panoply.config import DType, Pooling
from panoply.data.ratings import RatingMap
from panoply.data.schema import Prompt
from panoply.files import whole_folder
from panoply.hub.artefact.manifest import (
    MANIFEST,
    Manifest,
    check_sealed,
    hash_keys,
    read_manifest,
)
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.pretrained import choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.door.loading import check_sizes, load_config, load_tokenizer
from panoply.hub.reward_model import Scale, ScoreDetails, ScoringModel, provenance_of
from panoply.model.device import best_device
from panoply.model.forward import Features
from panoply.model.gate import make_gate
from panoply.model.gather import Tokenized
from panoply.model.reward_model import GatedHead, ModelOutput
from panoply.model.tree import TokenTree
from panoply.seal import seal
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Detail, Driver, Score

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveEffect:
    """Effect of one objective on the score of one response."""

    objective: str
    value: float
    """Predicted rating in the source's own scale (unit scale where there is none)."""
    coefficient: float
    """Effective coefficient on the unit-scale objective, for this prompt."""
    contribution: float
    """g_i (r'_i - its mean over the training responses): what it adds to an average response."""
    scale: Scale | None
    """Lowest and highest rating of the source's own scale; None where there is none."""

    @property
    def is_beyond_scale(self) -> bool:
        """Returns whether the predicted rating is one that no rater could have given."""
        return self.scale is not None and not RatingMap(*self.scale).holds(self.value)

    def __str__(self) -> str:
        line = f"{self.objective} {self.contribution:+.3f}"
        if self.scale is None or not self.is_beyond_scale:
            return line
        low, high = self.scale
        return f"{line} (rating {self.value:.3g} beyond its scale {low:g}..{high:g})"


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """The parts of a response's score."""

    score: float
    length_coefficient: float
    """Effective coefficient on the predicted log length."""
    drivers: tuple[ObjectiveEffect, ...]
    """All objectives, the strongest contribution first."""

    def __repr__(self) -> str:
        strongest = ", ".join(map(str, self.drivers[:3]))
        more = f" and {len(self.drivers) - 3} more" if len(self.drivers) > 3 else ""
        return f"<Explanation of score {self.score:.4g}: {strongest}{more}>"


def pooled(features: Features, pooling: Pooling, depth: int = 0) -> torch.Tensor:
    """Returns response features `[R, F]` at one of the stored depths."""
    last, mean = features.last_RLD[:, depth], features.mean_RLD[:, depth]
    choices = {"last": (last,), "mean_response": (mean,), "both": (last, mean)}
    return torch.cat(choices[pooling], dim=-1)


class GatedModel(ScoringModel[ModelOutput]):
    """A gated reward model: conversations in, scores and explanations out."""

    needs_turns = True

    def __init__(self, backbone: Backbone, head: GatedHead, manifest: Manifest) -> None:
        self.backbone = backbone
        self.head = head.eval().requires_grad_(False)
        self.manifest = manifest
        self.temperature = manifest.temperature
        self.maps = {name: RatingMap.from_dict(fields) for name, fields in manifest.maps.items()}
        self.objectives = {name: self._scale(name) for name in manifest.objectives}
        self.provenance = provenance_of("gated", backbone, head.state_dict(), manifest.pad_rule)

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[TokenTree]) -> ModelOutput:
        """Scores all responses of some trees, tree by tree."""
        features = self.backbone.features(trees)
        gate_rows = [g for g, tree in enumerate(trees) for _ in tree.branches]
        return self.head(pooled(features, self.manifest.pooling), features.gate_GLD[gate_rows, 0])

    def forward(self, trees: Sequence[TokenTree]) -> list[ModelOutput]:
        """Returns the head's output for each response, a batch of one each."""
        return self.score_trees(trees).rows()

    def score_of(self, output: ModelOutput) -> float:
        """Returns the score in an output of one response."""
        return float(output.score_B)

    def to_score(
        self, output: ModelOutput, conversation: Tokenized, request: ReplicaRequest
    ) -> Score:
        """Converts an output to the gate's score, or the one by the weights of the request."""
        if request.weights:
            weights_O = [request.weights.get(name, 0.0) for name in self.objectives]
            output = self.head.weighed(output, weights_O)
        return super().to_score(output, conversation, request)

    def details_of(self, output: ModelOutput, details: Set[Detail]) -> ScoreDetails:
        """Returns predicted objectives, their contributions, and the gate's weights."""
        result = ScoreDetails()
        if details & {"objectives", "drivers"}:
            effects = self.explanation(output).drivers
            if "objectives" in details:
                result["objectives"] = {effect.objective: effect.value for effect in effects}
            if "drivers" in details:
                result["drivers"] = [Driver(e.objective, e.value, e.contribution) for e in effects]
        if "gate" in details:
            weights_O = (output.weights_BO[0] / output.weights_BO[0].sum()).tolist()
            result["gate"] = dict(zip(self.objectives, weights_O, strict=True))
        return result

    def explain(self, prompt: Prompt, response: str) -> Explanation:
        """Returns the score of a response with what drove it."""
        tree = self.backbone.renderer.render(prompt, [response]).tree
        return self.explanation(self.score_trees([tree]))

    @torch.inference_mode()
    def explanation(self, output: ModelOutput) -> Explanation:
        """Returns what drove the score of a batch of one."""
        coefficient_BO, length_B = self.head.coefficients(output.weights_BO)
        shift_BO = self.head.debiased(output.values_BO, output.length_B) - self.head.center
        contribution_O = (output.weights_BO * shift_BO)[0]
        effects: list[ObjectiveEffect] = []
        for i, name in enumerate(self.manifest.objectives):
            value = float(output.values_BO[0, i])
            if name in self.maps:
                value = float(self.maps[name].to_raw(value))
            coefficient, contribution = float(coefficient_BO[0, i]), float(contribution_O[i])
            scale = self.objectives[name]
            effects.append(ObjectiveEffect(name, value, coefficient, contribution, scale))
        effects.sort(key=lambda effect: -abs(effect.contribution))
        return Explanation(float(output.score_B[0]), float(length_B[0]), tuple(effects))

    def _scale(self, objective: str) -> Scale | None:
        rating_map = self.maps.get(objective)
        return (rating_map.low, rating_map.high) if rating_map else None


def save_gated_model(
    model: GatedModel, folder: Path, baselines: Tensors, seen: Sequence[str]
) -> None:
    """Writes a gated model as a sealed folder, which appears when it is whole.

    Args:
        model: to be saved.
        folder: target; an earlier save is replaced.
        baselines: weights of the scorers that the gate was compared with.
        seen: split keys that training used.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    backbone = model.backbone
    tensors = {f"model.{k}": v for k, v in backbone.decoder.model.state_dict().items()}
    tensors |= {f"head.{k}": v for k, v in model.head.state_dict().items()}
    contiguous = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    with whole_folder(folder) as built:
        backbone.decoder.config.save_pretrained(built)
        backbone.renderer.tokenizer.save_pretrained(built)
        save_file(contiguous, built / "model.safetensors", metadata={"format": "pt"})
        save_file(
            {k: v.contiguous() for k, v in baselines.items()}, built / "baselines.safetensors"
        )
        np.save(built / "seen.npy", hash_keys(seen), allow_pickle=False)
        (built / MANIFEST).write_text(model.manifest.to_json())
        seal(built)


def load_gated_model(folder: Path) -> GatedModel:
    """Loads a gated model.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a file is not the one that was saved, a tensor does not fit, or the tokenizer's
            template is not the one the model was trained with.
    """
    from transformers import AutoModel

    manifest = read_manifest(folder)
    if not isinstance(manifest, Manifest):
        raise ValueError(
            f"{str(folder)!r} is a scalar reward model, not a gated one: load it with "
            "panoply.hub.artefact.load.load_reward_model"
        )
    check_sealed(folder, manifest)
    tensors = read_tensors(folder / "model.safetensors")
    device = best_device()
    # Made in its dtype and not cast to it: a cast would also round the rotary frequencies.
    dtype = choose_dtype(cast(DType, manifest.dtype), device)
    stored, config = _under("model.", tensors), load_config(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    check_sizes(AutoModel, config, shapes, folder)
    model = AutoModel.from_config(config, dtype=dtype)
    model.load_state_dict(stored)
    renderer = Renderer(load_tokenizer(folder), manifest.rendering)
    renderer.check_template(manifest.template_hash, folder)
    backbone = Backbone(manifest.backbone, model.to(device=device), renderer, [manifest.depth])

    head_tensors = _under("head.", tensors)
    num_objectives = len(manifest.objectives)
    gate = make_gate(head_tensors["gate.shift"].shape[0], num_objectives, manifest.gate)
    head = GatedHead(num_objectives, head_tensors["weight"].shape[1], gate)
    head.load_state_dict(head_tensors)
    return GatedModel(backbone, head, manifest)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
