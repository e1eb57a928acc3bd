"""Backbones: any Hugging Face decoder with its renderer, token trees in, features out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from panoply.config import DType, Rendering
from panoply.hub.backbone.attention import attend_by_trees
from panoply.hub.backbone.pretrained import choose_dtype, resolve
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.loading import load_model, load_tokenizer
from panoply.model.budget import calibrate, within_memory
from panoply.model.decoder import Decoder, find_layers
from panoply.model.device import best_device
from panoply.model.forward import Features, encode, encode_plain, takes_tree_masks
from panoply.model.prepacked import prepack
from panoply.model.tree import TokenTree

PAD_RULE = "positions and pooling follow token lists; no pad token is ever read"


class Backbone:
    """A frozen decoder with its renderer: texts in, features out."""

    def __init__(self, name: str, model: nn.Module, renderer: Renderer, depths: Sequence[int]):
        self.name = name
        self.renderer = renderer
        self.weights_hash = hash_weights(model)
        self.decoder = Decoder(model, depths)
        self.shares_prefixes = attend_by_trees(self.decoder) or takes_tree_masks(self.decoder)
        """False where the model takes neither tree attention nor a tree mask and runs on plain
        batches instead."""

        self.token_budget = 0
        """Tokens of a row that suit this machine; 0 until they are measured."""
        self.most_tokens = 2**31
        """Tokens of a row that fit into memory; smaller after a forward that did not fit."""

    def prepack(self) -> None:
        """Lays the weights out for faster inference; it cannot be saved or copied afterwards."""
        prepack(self.decoder.model)

    def features(self, trees: Sequence[TokenTree], budget: int = 0) -> Features:
        """Returns features of trees, by the cheapest exact path that this model allows.

        Args:
            trees: prompts with their responses.
            budget: tokens of a row; 0: as measured by a short calibration on first use.
        """
        if not self.shares_prefixes:
            return encode_plain(self.decoder, trees)
        if not budget:
            budget = self.token_budget = self.token_budget or calibrate(self.decoder)
        budget = min(budget, self.most_tokens)
        one_row = self.decoder.attends_by_trees or self.decoder.device.type == "cpu"
        run = partial(encode, self.decoder, trees, rows_per_forward=1 if one_row else 16)
        features, fitting = within_memory(lambda tokens: run(budget=tokens), budget)
        if fitting < budget:
            self.most_tokens = fitting
        return features


def load_backbone(
    name: str,
    *,
    depths: Sequence[int] | None = None,
    rendering: Rendering | None = None,
    dtype: DType = "auto",
) -> Backbone:
    """Loads a frozen backbone.

    Args:
        name: 'embedded', a Hugging Face folder, or a hub name.
        depths: layers whose states are returned; the model is cut to the deepest. None: all.
        rendering: token limits and gate position.
        dtype: 'auto' takes bfloat16 where it is fast.

    Raises:
        FileNotFoundError: see `resolve`.
        ValueError: the model is no decoder that gives hidden states.
    """
    from transformers import AutoModel

    folder = Path(resolve(name))
    device = best_device()
    tokenizer = load_tokenizer(folder)
    model = load_model(AutoModel, folder, dtype=choose_dtype(dtype, device), unused=None)
    layers = len(cast(nn.ModuleList, model.get_submodule(find_layers(model))))
    renderer = Renderer(tokenizer, rendering or Rendering())
    return Backbone(name, model.to(device), renderer, depths or [layers])


def hash_weights(model: nn.Module) -> str:
    """Returns a hash of all parameters: names, shapes and bytes."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns a hash of tensors: names, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # scalars have no bytes to view
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
