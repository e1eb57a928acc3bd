"""Prompt embeddings: the last state of a prompt in a frozen language model, a bandit's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from panoply.config import DType, Rendering
from panoply.data.schema import Prompt
from panoply.hub.backbone.backbone import load_backbone
from panoply.hub.backbone.pretrained import count_layers, silence_libraries
from panoply.types import Array


class PromptEncoder:
    """A frozen language model that embeds prompts."""

    def __init__(self, model: str, depth: float, rendering: Rendering, dtype: DType) -> None:
        """Loads the model.

        Args:
            model: 'embedded', a Hugging Face folder, or a hub name.
            depth: share of the layers that is kept.
            rendering: limit of the prompt.
            dtype: precision of the forward.
        """
        silence_libraries()
        layers = max(1, round(depth * count_layers(model)))
        at_end = replace(rendering, gate="prompt_last")
        self.backbone = load_backbone(model, depths=[layers], rendering=at_end, dtype=dtype)

    @torch.inference_mode()
    def states(self, prompts: Sequence[Prompt]) -> Array:
        """Returns `[N, D]`, the state at the end of each prompt, assistant's header included."""
        renderer = self.backbone.renderer
        trees = [renderer.render(prompt, [""]).tree for prompt in prompts]
        return self.backbone.features(trees).gate_GLD[:, -1].double().cpu().numpy()


def prompt_states(
    model: str, depth: float, rendering: Rendering, dtype: DType, prompts: Sequence[Prompt]
) -> Array:
    """Returns `[N, D]`, the state at the end of each prompt, by a model that is loaded for it."""
    return PromptEncoder(model, depth, rendering, dtype).states(prompts)
