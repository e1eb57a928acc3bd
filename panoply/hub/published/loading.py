"""Loading published models whole, with limits on what they read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from panoply.config import GatePosition, Rendering, require
from panoply.config.steps import StepRule
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.pretrained import check_vocabulary, choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import stored_dtype
from panoply.hub.door.loading import load_model, load_tokenizer
from panoply.model.decoder import find_layers
from panoply.model.device import best_device

LEAST_TOKENS = 32
POSITIONS = 8192
"""Tokens of a conversation where a model does not tell its positions."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Holds what a caller chose about a published model."""

    code: bool = False
    """Run the model's own code where its layout is unknown."""
    max_tokens: int = 0
    """Most tokens of a conversation; 0: as many as the model has positions."""
    steps: StepRule | None = None
    """Rule of the steps of a process reward model; None: its defaults."""

    def __post_init__(self) -> None:
        fits = self.max_tokens == 0 or self.max_tokens >= LEAST_TOKENS
        require(
            fits, "max_tokens", self.max_tokens, f"0 (the model's positions) or >= {LEAST_TOKENS}"
        )


def load_whole(
    loader: Any,
    folder: Path,
    fields: Mapping[str, Any],
    *,
    unused: Collection[str] = (),
    **options: Any,
) -> Any:
    """Returns a model in the dtype that its configuration names; see `load_model`."""
    dtype = choose_dtype(stored_dtype(fields), best_device())
    return load_model(loader, folder, dtype=dtype, unused=unused, **options)


def load_chat_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a model.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has no chat template, so that what the model was trained on is not known.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has no chat template, and another than that of "
            "training gives other scores: put the template it was trained with into "
            "chat_template.jinja"
        )
    return tokenizer


def make_backbone(
    name: str,
    model: nn.Module,
    tokenizer: Any,
    max_tokens: int = 0,
    gate: GatePosition = "header_first",
) -> Backbone:
    """Returns a whole decoder with a renderer, whose limits are the model's own.

    Args:
        name: of the model.
        model: the decoder stack.
        tokenizer: of the model.
        max_tokens: see `LoadOptions`.
        gate: token that conditions the gate, where the model has one.

    Raises:
        ValueError: the tokenizer gives tokens that the model has no embedding for, `max_tokens` is
            more than the model has positions, or the model is no decoder.
    """
    renderer = Renderer(tokenizer, limits_of(name, cast(Any, model).config, max_tokens, gate))
    check_vocabulary(renderer, model)
    layers = len(cast(nn.ModuleList, model.get_submodule(find_layers(model))))
    return Backbone(name, on_best_device(model), renderer, [layers])


def on_best_device(model: Any) -> Any:
    """Returns a model on the device that models run on; a quantized one stays where it was put."""
    return model if getattr(model, "is_quantized", False) else model.to(best_device())


def limits_of(name: str, config: Any, max_tokens: int, gate: GatePosition) -> Rendering:
    """Returns limits under which a conversation is cut only beyond the positions of a model.

    A prompt has at most three quarters of them, and a response what its prompt leaves.

    Raises:
        ValueError: `max_tokens` is more than the model has positions.
    """
    positions = int(getattr(config, "max_position_embeddings", None) or POSITIONS)
    if max_tokens > positions:
        raise ValueError(
            f"`max_tokens` is {max_tokens:,}, and {name!r} has {positions:,} positions: take at "
            "most those, or 0 for all of them"
        )
    most = max(LEAST_TOKENS, max_tokens or positions)
    return Rendering(
        max_prompt_tokens=most * 3 // 4, max_response_tokens=most, max_tokens=most, gate=gate
    )
