"""Prompt embeddings: the last state of a prompt in a frozen language model, a bandit's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from panoply.config import DType, Rendering
from panoply.data.schema import Prompt
from panoply.hub.backbone.backbone import load_backbone
from panoply.hub.backbone.pretrained import count_layers, silence_libraries
from panoply.types import Array


@torch.inference_mode()
def prompt_states(
    model: str, depth: float, rendering: Rendering, dtype: DType, prompts: Sequence[Prompt]
) -> Array:
    """Returns `[N, D]`, the state at the end of each prompt, assistant's header included.

    Args:
        model: 'embedded', a Hugging Face folder, or a hub name.
        depth: share of the layers that is kept.
        rendering: limit of the prompt.
        dtype: precision of the forward.
        prompts: the prompts, as turns.
    """
    silence_libraries()
    layers = max(1, round(depth * count_layers(model)))
    at_end = replace(rendering, gate="prompt_last")
    backbone = load_backbone(model, depths=[layers], rendering=at_end, dtype=dtype)
    trees = [backbone.renderer.render(prompt, [""]).tree for prompt in prompts]
    return backbone.features(trees).gate_GLD[:, -1].double().cpu().numpy()


def unit_contexts(states_ND: Array, center_D: Array) -> Array:
    """Returns `[N, 1 + D]`, states about a center behind a constant, of unit length.

        x = [1; (s - c) / |s - c|] / sqrt(2)

    The center, which all states share, tells no prompts apart. Without the constant a linear bandit
    could not learn that an arm is better or worse than others on all prompts.
    """
    centered = states_ND - center_D
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    unit = np.divide(centered, length, out=np.zeros_like(centered), where=length > 0)
    return with_constant(unit)


def with_constant(unit_ND: Array) -> Array:
    """Returns features of unit length behind a constant, of unit length together."""
    return np.concatenate([np.ones((len(unit_ND), 1)), unit_ND], axis=1) / np.sqrt(2)
