"""Scalar reward models on one frozen backbone whose members have adapters or layers of their own.

    s_k = w_k . z_k,   z_k the state at the last token under the adapter, or the layers, of member k

    model.safetensors, config.json, tokenizer    the backbone, as it was before training
    members/K/                                   the adapter of member K in peft's layout, or its
                                                 last layers
    heads.safetensors, panoply.json, seen.npy    as of any scalar model

The score is one of the rules of `panoply.hub.artefact.scalar`. The folder is no sequence
classifier: no single head on the backbone gives its scores.

Legend: `R` responses, `K` members, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from panoply.files import whole_folder
from panoply.hub.artefact.classifier import check_vacant
from panoply.hub.artefact.manifest import (
    MANIFEST,
    ScalarManifest,
    check_sealed,
    hash_keys,
    read_manifest,
)
from panoply.hub.artefact.model_card import write_card
from panoply.hub.artefact.scalar import ScalarModel
from panoply.hub.backbone.adapters import LAYERS, SharedBackbone
from panoply.hub.backbone.backbone import PAD_RULE, Backbone
from panoply.hub.backbone.pretrained import MEMBERS, choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.door.loading import load_model, load_tokenizer
from panoply.hub.policy.lora import save_adapter
from panoply.hub.policy.trainable import TrainableModel
from panoply.model.device import best_device
from panoply.model.tree import TokenTree
from panoply.seal import seal

HEAD = "head.weight"
"""Name of the head among the trained parameters of a member."""


class AdapterMembers(ScalarModel):
    """A scalar reward model whose members lie on a backbone that others may share."""

    def __init__(
        self,
        shared: SharedBackbone,
        adapters: Sequence[str],
        renderer: Renderer,
        heads_KD: Tensor,
        manifest: ScalarManifest,
    ) -> None:
        self.shared, self.adapters = shared, tuple(adapters)
        backbone = shared.view(manifest.backbone, renderer, list(adapters))
        super().__init__(backbone, heads_KD, manifest)

    def raw_members(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the score s_k of each response by each member, `[R, K]`."""
        columns: list[Tensor] = []
        for adapter, head_D in zip(self.adapters, self.heads_KD, strict=True):
            with self.shared.using(adapter):
                columns.append(self.backbone.features(trees).last_RLD[:, -1] @ head_D)
        return torch.stack(columns, 1)

    def prepack(self) -> None:
        """Lays the shared backbone's weights out for scoring; see `RewardModel.prepack`."""
        self.shared.prepack()

    def release(self) -> None:
        """Takes the adapters off the backbone; the model scores no more."""
        for adapter in self.adapters:
            self.shared.remove(adapter)


def save_adapter_members(
    trainable: TrainableModel,
    members: Sequence[Mapping[str, Tensor]],
    manifest: ScalarManifest,
    folder: Path,
    seen: Sequence[str],
) -> None:
    """Writes a model of members as a folder, which appears when all of it is written.

    Args:
        trainable: the network as it was before training; it loses its adapters here.
        members: trained parameters of each member, the head among them.
        manifest: of the model.
        folder: new, or that of an earlier save.
        seen: split keys that training used.

    Raises:
        ValueError: `folder` holds something that is no reward model.
    """
    if not (folder / MANIFEST).is_file():
        check_vacant(folder)
    with whole_folder(folder) as built:
        for number, params in enumerate(members):
            part = {name: value for name, value in params.items() if name != HEAD}
            of_member = built / MEMBERS / str(number)
            if manifest.members == "adapters":
                save_adapter(trainable, part, manifest.backbone, of_member)
            else:
                save_layers(trainable, part, of_member)
        plain = trainable.lora.unload() if trainable.lora else cast(Any, trainable.model)
        plain.save_pretrained(built)
        trainable.renderer.tokenizer.save_pretrained(built)
        heads_KD = torch.cat([params[HEAD].detach().float().cpu() for params in members])
        save_file({"heads": heads_KD.contiguous()}, built / "heads.safetensors")
        np.save(built / "seen.npy", hash_keys(seen), allow_pickle=False)
        (built / MANIFEST).write_text(replace(manifest, pad_rule=PAD_RULE).to_json())
        write_card(built)
        seal(built)


def save_layers(trainable: TrainableModel, params: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the trained layers of a member under their names in the whole backbone."""
    whole = {id(parameter): name for name, parameter in trainable.model.named_parameters()}
    trained = dict(trainable.net.named_parameters())
    folder.mkdir(parents=True)
    tensors = {whole[id(trained[name])]: value.contiguous() for name, value in params.items()}
    save_file(tensors, folder / LAYERS, metadata={"format": "pt"})


def load_adapter_members(folder: Path, shared: SharedBackbone | None = None) -> AdapterMembers:
    """Loads a model that `save_adapter_members` wrote.

    Args:
        folder: of the model.
        shared: the backbone of the folder, where it is loaded already; None loads it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not the one that was saved, or an adapter does not fit.
    """
    from transformers import AutoModel

    manifest = read_manifest(folder)
    assert isinstance(manifest, ScalarManifest)
    check_sealed(folder, manifest)
    renderer = Renderer(load_tokenizer(folder), manifest.rendering)
    renderer.check_template(manifest.template_hash, folder)
    if shared is None:
        device = best_device()
        dtype = choose_dtype("float32", device)
        model = load_model(AutoModel, folder, dtype=dtype).to(device)
        shared = SharedBackbone(Backbone(manifest.backbone, model, renderer, [manifest.depth]))
    heads_KD = read_tensors(folder / "heads.safetensors")["heads"]
    adapters = [shared.add(folder / MEMBERS / str(number)) for number in range(len(heads_KD))]
    return AdapterMembers(shared, adapters, renderer, heads_KD, manifest)
