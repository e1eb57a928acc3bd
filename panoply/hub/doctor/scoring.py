"""Scoring a few fixed conversations in several ways: alone, in batches, in trees, in a dtype."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, cast

import torch

from panoply.hub.artefact.classifier import PROBES
from panoply.hub.artefact.load import AnyModel, RewardModel
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.renderer import RenderedTree
from panoply.hub.published.pairwise import PairwiseModel
from panoply.model.tree import TokenTree
from panoply.types import Array


def read(model: AnyModel, trees: Sequence[TokenTree]) -> Array:
    """Returns what a model says of some trees: scores of responses, or preferences of pairs."""
    if isinstance(model, PairwiseModel):
        return model.probabilities(trees).double().numpy()
    if isinstance(model, RewardModel):
        return model.score_trees(trees).score_B.double().numpy()
    return model.score_trees(trees).double().numpy()


def render(model: AnyModel, prompt: str, responses: Sequence[str]) -> RenderedTree:
    """Renders as a model reads: responses to a prompt, or two of them against each other."""
    turns = [{"role": "user", "content": prompt}]
    if isinstance(model, PairwiseModel):
        return model.render(cast(Any, turns), responses[0], responses[1])
    return model.backbone.renderer.render(cast(Any, turns), responses)


def probe_trees(model: AnyModel) -> list[TokenTree]:
    """Returns the probes' trees: a tree a prompt, or a tree a pair."""
    if isinstance(model, PairwiseModel):
        return [
            model.render(prompt, a, b).tree
            for prompt, texts in PROBES
            for a, b in zip(texts, texts[1:] + texts[:1], strict=True)
        ]
    return [model.backbone.renderer.render(*probe).tree for probe in PROBES]


def apart(model: AnyModel, trees: Sequence[TokenTree]) -> list[TokenTree]:
    """Returns trees of what is scored alone: a response; a pair stays together."""
    if isinstance(model, PairwiseModel):
        return list(trees)
    return [replace(tree, branches=(branch,)) for tree in trees for branch in tree.branches]


@contextmanager
def plain(backbone: Backbone) -> Generator[None]:
    """Lets a backbone compute separate sequences while the context is open."""
    before, backbone.shares_prefixes = backbone.shares_prefixes, False
    try:
        yield
    finally:
        backbone.shares_prefixes = before


def in_dtype(model: AnyModel, dtype: torch.dtype) -> AnyModel:
    """Returns a model that computes in another dtype; its head stays as it is."""
    own = model.backbone
    if own.decoder.dtype == dtype:
        return model
    decoder = deepcopy(own.decoder.model)
    for parameter in decoder.parameters():  # not the rotary frequencies, which stay float32
        parameter.data = parameter.data.to(dtype)
    other = copy(model)
    other.backbone = Backbone(own.name, decoder, own.renderer, own.decoder.depths)
    return other
