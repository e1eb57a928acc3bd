"""Ways to compute the same scores: by plain sequences instead of trees, in another dtype."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch

from panoply.hub.backbone.backbone import Backbone
from panoply.hub.example_conversations import EXAMPLE_CONVERSATIONS
from panoply.hub.reward_model import RewardModel
from panoply.model.tree import TokenTree


def rendered_examples(model: RewardModel[Any]) -> list[TokenTree]:
    """Returns the trees of the example conversations, as the model renders them."""
    trees: list[TokenTree] = []
    for prompt, responses in EXAMPLE_CONVERSATIONS:
        trees += [rendered.tree for rendered in model.render(prompt, responses)]
    return trees


@contextmanager
def separate_sequences(backbone: Backbone) -> Generator[None]:
    """Lets a backbone compute separate sequences while the context is open."""
    before, backbone.shares_prefixes = backbone.shares_prefixes, False
    try:
        yield
    finally:
        backbone.shares_prefixes = before


def in_dtype(model: RewardModel[Any], dtype: torch.dtype) -> RewardModel[Any]:
    """Returns a model that computes in another dtype; its head stays as it is."""
    backbone = model.backbone
    if backbone.decoder.dtype == dtype:
        return model
    decoder = deepcopy(backbone.decoder.model)
    for parameter in decoder.parameters():  # not the rotary frequencies, which stay float32
        parameter.data = parameter.data.to(dtype)
    other = copy(model)
    other.backbone = Backbone(backbone.name, decoder, backbone.renderer, backbone.decoder.depths)
    return other
