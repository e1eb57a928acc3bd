"""Reward models as folders: load any kind; save, score and explain gated ones.

`config.json` and `model.safetensors` (the cut backbone and the head), the tokenizer, and
`panoply.json` with what else scoring depends on. `baselines.safetensors` holds the fixed scorers
that the gate was compared with, `seen.npy` hashes of the split keys that training used. Scalar
models are those of `panoply.hub.artefact.scalar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from panoply.config import DType, Pooling
from panoply.data.ratings import RatingMap
from panoply.data.schema import Prompt
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, hash_keys, read_card
from panoply.hub.artefact.scalar import ScalarModel, load_scalar_model
from panoply.hub.backbone.backbone import Backbone, Renderer, choose_dtype
from panoply.hub.backbone.scoring_model import ScoringModel, provenance_of
from panoply.hub.published.armorm import Parts, is_armorm, load_armorm
from panoply.hub.published.checkpoint import Checkpoint
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.layouts import load_published
from panoply.hub.published.loading import fetch
from panoply.hub.published.lora_classifier import load_adapter
from panoply.hub.published.pairwise import PairwiseModel
from panoply.model.forward import Features
from panoply.model.gate import make_gate
from panoply.model.gather import merge_prefixes
from panoply.model.reward_model import GatedHead, ModelOutput
from panoply.model.tree import TokenTree

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveEffect:
    """How one objective moves one response's score."""

    objective: str
    value: float
    """Predicted rating in the source's own scale (unit scale where there is none)."""
    coefficient: float
    """Effective coefficient on the unit-scale objective, for this prompt."""
    contribution: float
    """g_i (r'_i - its mean over the training responses): what it adds to an average response."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a response got its score."""

    score: float
    length_coefficient: float
    """Effective coefficient on the predicted log length."""
    drivers: tuple[ObjectiveEffect, ...]
    """All objectives, the strongest contribution first."""


def pooled(features: Features, pooling: Pooling, depth: int = 0) -> torch.Tensor:
    """Returns response features `[R, F]` at one of the stored depths."""
    last, mean = features.last_RLD[:, depth], features.mean_RLD[:, depth]
    choices = {"last": (last,), "mean_response": (mean,), "both": (last, mean)}
    return torch.cat(choices[pooling], dim=-1)


class RewardModel(ScoringModel):
    """A gated reward model: conversations in, scores and explanations out."""

    def __init__(self, backbone: Backbone, head: GatedHead, card: Manifest) -> None:
        self.backbone = backbone
        self.head = head.eval().requires_grad_(False)
        self.card = card
        self.temperature = card.temperature
        self.provenance = provenance_of("gated", backbone, head.state_dict(), card.pad_rule)

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[TokenTree]) -> ModelOutput:
        """Scores all responses of some trees, tree by tree."""
        features = self.backbone.features(trees)
        gate_rows = [g for g, tree in enumerate(trees) for _ in tree.branches]
        return self.head(pooled(features, self.card.pooling), features.gate_GLD[gate_rows, 0])

    def score(self, prompt: Prompt, responses: Sequence[str]) -> NDArray[np.float32]:
        """Returns the score of each response to a prompt, `[R]` float32.

        It is the score of that response alone: where a response moves the gate's position, since
        its first characters merge with the prompt's last ones, the others keep theirs.
        """
        gathered = merge_prefixes(self.backbone.renderer.conversations(prompt, responses))
        return self.score_trees(gathered.trees).score_B[gathered.places].numpy()

    def explain(self, prompt: Prompt, response: str) -> Explanation:
        """Returns the score of a response with what drove it."""
        tree = self.backbone.renderer.render(prompt, [response]).tree
        return self.explanation(self.score_trees([tree]))

    @torch.inference_mode()
    def explanation(self, scored: ModelOutput) -> Explanation:
        """Returns what drove the score of a batch of one."""
        coefficient_BO, length_B = self.head.coefficients(scored.weights_BO)
        moved = self.head.debiased(scored.values_BO, scored.length_B) - self.head.center
        contribution = (scored.weights_BO * moved)[0]
        drivers = [
            ObjectiveEffect(
                name,
                self._own_scale(name, float(scored.values_BO[0, i])),
                float(coefficient_BO[0, i]),
                float(contribution[i]),
            )
            for i, name in enumerate(self.card.objectives)
        ]
        drivers.sort(key=lambda driver: -abs(driver.contribution))
        return Explanation(float(scored.score_B[0]), float(length_B[0]), tuple(drivers))

    def _own_scale(self, objective: str, value: float) -> float:
        found = self.card.maps.get(objective)
        return float(RatingMap.from_dict(found).to_raw(value)) if found else value


AnyModel: TypeAlias = RewardModel | ScalarModel | HeadModel | PairwiseModel


def save_reward_model(
    model: RewardModel, folder: Path, baselines: Tensors, seen: Sequence[str]
) -> None:
    """Writes a reward model as a folder.

    Args:
        model: what to save.
        folder: target; files of an earlier save are replaced.
        baselines: weights of the scorers it was compared with.
        seen: split keys that training used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone = model.backbone
    backbone.decoder.config.save_pretrained(folder)
    backbone.renderer.tokenizer.save_pretrained(folder)
    tensors = {f"model.{k}": v for k, v in backbone.decoder.model.state_dict().items()}
    tensors |= {f"head.{k}": v for k, v in model.head.state_dict().items()}
    contiguous = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous() for k, v in baselines.items()}, folder / "baselines.safetensors")
    np.save(folder / "seen.npy", hash_keys(seen), allow_pickle=False)
    (folder / "panoply.json").write_text(model.card.to_json())


def load_reward_model(name: str | Path, *, trust_remote_code: bool = False) -> AnyModel:
    """Loads a reward model: a folder of ours, or one that others published.

    `panoply.hub.published.layouts` lists the layouts that load, and what is refused.

    Args:
        name: a folder, or a hub name 'owner/name'.
        trust_remote_code: where the layout is unknown and the model brings a sequence classifier of
            its own, run that code. Known layouts never need it.

    Raises:
        FileNotFoundError: there is no such model, or it lacks a file.
        ValueError: the layout is none of these, a tensor does not fit, or the tokenizer's template
            is not the one the model was trained with.
    """
    folder = fetch(str(name), code=trust_remote_code)
    if (folder / "panoply.json").is_file():
        is_scalar = isinstance(read_card(folder), ScalarManifest)
        return load_scalar_model(folder) if is_scalar else load_gated_model(folder)
    if (folder / "adapter_config.json").is_file():
        return load_adapter(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no reward model folder: it has no panoply.json and no "
            "config.json. A run leaves one in OUT/model"
        )
    checkpoint = Checkpoint.open(folder)
    if is_armorm(checkpoint):
        return _with_card(load_armorm(checkpoint))
    return load_published(checkpoint, trust_remote_code=trust_remote_code)


def load_gated_model(folder: Path) -> RewardModel:
    """Loads a gated model of ours; raises as `load_reward_model` does."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    card = Manifest.from_json((folder / "panoply.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Made in its dtype and not cast to it: a cast would also round the rotary frequencies.
    dtype = choose_dtype(cast(DType, card.dtype), device)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.load_state_dict(_under("model.", tensors))
    model = model.to(device=device)
    renderer = Renderer(AutoTokenizer.from_pretrained(folder), card.rendering)
    renderer.check_template(card.template_hash, folder)
    backbone = Backbone(card.backbone, model, renderer, [card.depth])
    return RewardModel(backbone, _head(card, _under("head.", tensors)), card)


def _with_card(parts: Parts) -> RewardModel:
    """Returns a published gated model with the card that ours have."""
    backbone = parts.backbone
    card = Manifest(
        objectives=parts.objectives,
        maps=parts.scales,
        pooling="last",
        rendering=backbone.renderer.rendering,
        gate=parts.gate,
        temperature=1.0,  # its gate is trained on score differences as log odds
        seed=0,
        template_hash=backbone.renderer.template_hash,
        bos=tuple(backbone.renderer.bos),
        backbone=backbone.name,
        weights_hash=backbone.weights_hash,
        depth=backbone.decoder.depths[0],
        dtype=str(backbone.decoder.dtype).removeprefix("torch."),
        data={},
    )
    return RewardModel(backbone, parts.head, card)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _head(card: Manifest, tensors: Tensors) -> GatedHead:
    size = tensors["gate.shift"].shape[0]
    gate = make_gate(size, len(card.objectives), card.gate)
    head = GatedHead(len(card.objectives), tensors["weight"].shape[1], gate)
    head.load_state_dict(tensors)
    return head
