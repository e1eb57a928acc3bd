"""Scalar reward models as folders: one linear Bradley-Terry head on a decoder, or an ensemble.

    s_k = w_k . z,   z the state at the last token of the render
    K = 1:  s = s_1
    K > 1:  s = 1/K sum_k (s_k - m_k) / d_k, without its constant
              = w . z,   w = 1/K sum_k w_k / d_k

with m_k and d_k the mean and deviation of head k on training responses. Either way the score is one
linear head, so the folder is a sequence classifier (`panoply.hub.artefact.classifier`) whose
logits are the scores. `heads.safetensors` holds the w_k, `panoply.json` what else scoring depends
on, and `seen.npy` hashes of the split keys that training used. Another rule of an ensemble (LCB,
UWO, WCO: `panoply.scorers.composite.rules`) pools the standardized scores; transformers alone then
gives their mean.

All is float32, whatever training computed in: transformers loads the folder so, and bfloat16 would
give other scores here than there.

Legend: `R` responses, `K` heads, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from panoply.config.composite import Mean
from panoply.config.members import pooled_rule
from panoply.data.schema import Prompt
from panoply.files import whole_folder
from panoply.hub.artefact.classifier import check_drift, check_vacant, write_classifier
from panoply.hub.artefact.manifest import (
    MANIFEST,
    ScalarManifest,
    check_sealed,
    hash_keys,
    read_manifest,
)
from panoply.hub.artefact.model_card import write_card
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.pretrained import choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.door.loading import load_model, load_tokenizer
from panoply.hub.example_conversations import example_trees
from panoply.hub.reward_model import ScoreDetails, ScoringModel, provenance_of
from panoply.model.device import best_device
from panoply.model.gather import merge_prefixes
from panoply.model.tree import TokenTree
from panoply.scorers.composite.rules import pooled
from panoply.seal import seal
from panoply.types import Floats
from panoply.wire.request import Detail

BETA = 1.0
"""Deviations between the members of an ensemble that its lower bound lies below its score."""
LOWER_BOUND = "lower_bound"


class ScalarOutput(NamedTuple):
    """Output of a forward for one response."""

    score: float
    lower_bound: float
    members: tuple[float, ...]
    """Standardized score of each member."""
    spread: float
    """Deviation between the members' standardized scores; 0 of one member."""


class ScalarModel(ScoringModel[ScalarOutput]):
    """A scalar reward model: conversations in, scores out, with the members of an ensemble."""

    def __init__(self, backbone: Backbone, heads_KD: Tensor, manifest: ScalarManifest) -> None:
        self.backbone = backbone
        self.heads_KD = heads_KD
        self.manifest = manifest
        self.rule = pooled_rule(manifest.rule, manifest.caution)
        self.temperature = manifest.temperature
        heads = {"heads": heads_KD, "scales": heads_KD.new_tensor(manifest.scales)}
        kind = "scalar" if manifest.rule == "mean" else "ensemble"  # what one head gives, or not
        if manifest.members != "heads":
            kind = manifest.members
        self.provenance = provenance_of(kind, backbone, heads, manifest.pad_rule)

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the scores `[R]` of all responses of some trees, tree by tree."""
        return self._scores(self.raw_members(trees))

    @torch.inference_mode()
    def members_of_trees(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the standardized scores (s_k - m_k) / d_k of each head, `[R, K]`."""
        return self._standardized(self.raw_members(trees))

    @torch.inference_mode()
    def bound_trees(self, trees: Sequence[TokenTree], beta: float = BETA) -> tuple[Tensor, Tensor]:
        """Returns scores and their lower confidence bounds, `[R]` each (arXiv 2401.16635).

            LCB = mean_k s_k / d_k - beta std_k( (s_k - m_k) / d_k )

        Args:
            trees: prompts with their responses.
            beta: how much disagreement costs; one head disagrees with nobody.
        """
        raw_RK = self.raw_members(trees)
        spread_R = self._standardized(raw_RK).std(1, correction=0)
        return self._scores(raw_RK), self._means(raw_RK) - beta * spread_R

    def lower_bound(self, prompt: Prompt, responses: Sequence[str], beta: float = BETA) -> Floats:
        """Returns the lower bound of each response's score, `[R]` float32; see `bound_trees`."""
        gathered = merge_prefixes(self.backbone.renderer.conversations(prompt, responses))
        return self.bound_trees(gathered.trees, beta)[1][gathered.places].numpy()

    @torch.inference_mode()
    def forward(self, trees: Sequence[TokenTree]) -> list[ScalarOutput]:
        """Returns score, lower bound and members of each response."""
        raw_RK = self.raw_members(trees)
        members_RK = self._standardized(raw_RK)
        spread_R = members_RK.std(1, correction=0)
        bound_R = self._means(raw_RK) - BETA * spread_R
        columns = (self._scores(raw_RK), bound_R, members_RK, spread_R)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            ScalarOutput(score, bound, tuple(members), spread)
            for score, bound, members, spread in rows
        ]

    def score_of(self, output: ScalarOutput) -> float:
        """Returns the score in an output."""
        return output.score

    def details_of(self, output: ScalarOutput, details: Set[Detail]) -> ScoreDetails:
        """Returns an ensemble's spread, and as objectives its lower bound and its members."""
        if len(self.heads_KD) == 1:
            return {}
        shown: ScoreDetails = {}
        if "objectives" in details:
            members = {member_name(k): score for k, score in enumerate(output.members)}
            shown["objectives"] = {LOWER_BOUND: output.lower_bound, **members}
        if "spread" in details:
            shown["spread"] = output.spread
        return shown

    def raw_members(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the score s_k of each response by each member, `[R, K]`."""
        return self.backbone.features(trees).last_RLD[:, -1] @ self.heads_KD.T

    def _scores(self, raw_RK: Tensor) -> Tensor:
        """Returns the score `[R]` by the rule of the model."""
        if raw_RK.shape[1] == 1 or isinstance(self.rule, Mean):
            return self._means(raw_RK)
        z_KR = self._standardized(raw_RK).double().numpy().T
        return torch.from_numpy(pooled(self.rule, z_KR, np.ones(len(z_KR)))).float()

    def _means(self, raw_RK: Tensor) -> Tensor:
        """Returns the mean of the members, of each in its deviations; of a single one its score."""
        if raw_RK.shape[1] == 1:
            return raw_RK[:, 0]
        return (raw_RK / torch.tensor(self.manifest.scales)).mean(1)

    def _standardized(self, raw_RK: Tensor) -> Tensor:
        center_K = torch.tensor(self.manifest.centers)
        return (raw_RK - center_K) / torch.tensor(self.manifest.scales)


def member_name(number: int) -> str:
    """Returns the name of a member, counted from 0, among the objectives of an answer."""
    return f"member_{number + 1}"


def collapsed(heads_KD: Tensor, scales: Sequence[float]) -> Tensor:
    """Returns the one head w `[D]` whose output is the score, up to a constant."""
    if len(heads_KD) == 1:
        return heads_KD[0]
    return (heads_KD / heads_KD.new_tensor(scales)[:, None]).mean(0)


def save_scalar_model(
    model: nn.Module,
    renderer: Renderer,
    heads_KD: Tensor,
    manifest: ScalarManifest,
    folder: Path,
    seen: Sequence[str],
) -> float:
    """Writes a scalar reward model as a folder, loads it again and compares.

    It is built beside `folder`, which appears when it is right; a model that an earlier save left
    there is replaced then, so that a run may be repeated.

    Args:
        model: the decoder stack without a language-model head, adapters merged; it is not changed.
        renderer: of its conversations.
        heads_KD: one head, or the members of an ensemble.
        manifest: of the model; its template hash and BOS rule are set here to the folder's.
        folder: new, or that of an earlier save.
        seen: split keys that training used.

    Returns:
        The largest drift of the scores by transformers alone, over their deviation.

    Raises:
        ValueError: the architecture has no sequence classifier with a linear head, the heads do not
            fit the manifest, or `folder` holds something that is no reward model.
        RuntimeError: the saved model scores differently.
    """
    if heads_KD.shape[:1] != (len(manifest.scales),):
        raise ValueError(
            f"heads have shape {list(heads_KD.shape)}, but the manifest has centers and scales of "
            f"{len(manifest.scales)}: give [{len(manifest.scales)}, D]"
        )
    if not (folder / MANIFEST).is_file():
        check_vacant(folder)
    heads_KD = heads_KD.detach().float().cpu()
    with whole_folder(folder) as built:
        written = write_classifier(model, renderer, collapsed(heads_KD, manifest.scales), built)
        manifest = replace(manifest, template_hash=written.template_hash, bos=tuple(written.bos))
        save_file({"heads": heads_KD.contiguous()}, built / "heads.safetensors")
        np.save(built / "seen.npy", hash_keys(seen), allow_pickle=False)
        (built / MANIFEST).write_text(manifest.to_json())
        write_card(built)
        seal(built)
        loaded = load_scalar_model(built)
        trees = example_trees(loaded.backbone.renderer.tokenizer)
        _, mean_R = loaded.bound_trees(trees, beta=0.0)  # what one linear head can give
        return check_drift(mean_R, built)


def load_scalar_model(folder: Path) -> ScalarModel:
    """Loads a scalar reward model.

    Raises:
        FileNotFoundError: the folder is no reward model.
        ValueError: it is one of another kind, a file is not the one that was saved, or the
            tokenizer's template is not the one that the model was trained with.
    """
    from transformers import AutoModelForSequenceClassification

    manifest = read_manifest(folder)
    if not isinstance(manifest, ScalarManifest):
        raise ValueError(
            f"{str(folder)!r} is a gated reward model, not a scalar one: load it with "
            "panoply.hub.artefact.load.load_reward_model"
        )
    check_sealed(folder, manifest)
    device = best_device()
    dtype = choose_dtype("float32", device)
    classifier = load_model(AutoModelForSequenceClassification, folder, dtype=dtype)
    decoder = classifier.base_model.to(device)
    renderer = Renderer(load_tokenizer(folder), manifest.rendering)
    renderer.check_template(manifest.template_hash, folder)
    backbone = Backbone(manifest.backbone, decoder, renderer, [manifest.depth])
    return ScalarModel(backbone, read_tensors(folder / "heads.safetensors")["heads"], manifest)
