"""The head that training begins with: that of the reward model below it, or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from panoply.config.preference import TrainedBackboneConfig
from panoply.hub.backbone.pretrained import resolve
from panoply.hub.door.checkpoint import Checkpoint
from panoply.hub.published.heads import StoredHead, trained_head

HEADS = ("score.", "value_head.", "v_head.", "head.", "regression_layer.", "gating.")
"""Beginnings of the names of tensors that are of a trained head."""


def make_head(
    config: TrainedBackboneConfig, size: int, num_heads: int, seed: int, spread: float
) -> nn.Linear:
    """Returns the head that training begins with.

    Args:
        config: the backbone.
        size: width of its states.
        num_heads: heads of an ensemble.
        seed: of a head that is drawn.
        spread: deviation of its weights.

    Raises:
        FileNotFoundError, ValueError: the model's weights cannot be read.
    """
    head = nn.Linear(size, num_heads, bias=False)
    if stored := head_to_take_over(config, num_heads):
        head.weight.data.copy_(cast(nn.Linear, stored.filled(size)).weight.data)
        return head
    # A draw of its own: the head starts alike whatever else starts at random.
    draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    head.weight.data.copy_(draw * spread)
    return head


def head_to_take_over(config: TrainedBackboneConfig, num_heads: int) -> StoredHead | None:
    """Returns the head of the model below that training goes on from; None: a new one is drawn.

    It is one linear layer with one score on the last layer, and training has one such head on all
    layers. A bias is left out: it moves no difference of scores.

    Raises:
        FileNotFoundError, ValueError: the model's weights cannot be read.
    """
    if config.new_head or num_heads > 1 or config.depth < 1:
        return None
    return trained_head(Path(resolve(config.model)))


def describe_first_head(config: TrainedBackboneConfig, num_heads: int) -> str:
    """Returns a line about the head where the model below brings one; else nothing.

    Raises:
        FileNotFoundError, ValueError: the model's weights cannot be read.
    """
    folder = Path(resolve(config.model))
    names = [name for name in Checkpoint.open(folder).shapes if name.startswith(HEADS)]
    if not names:
        return ""
    if stored := head_to_take_over(config, num_heads):
        return (
            f"head: {config.model} is a reward model, and training goes on from its "
            f"{stored.stem}.weight (--backbone.new-head draws a new one)"
        )
    why = "it is not one linear layer with one score"
    if config.new_head:
        why = "as --backbone.new-head says"
    elif num_heads > 1:
        why = f"an ensemble draws all of its {num_heads} heads"
    elif config.depth < 1:
        why = "it belongs to the last layer, which is cut away"
    return f"head: the trained head of {config.model} is dropped, and a new one drawn: {why}"
