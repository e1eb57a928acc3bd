"""Pretrained models: names resolved to folders, the dtype that suits a device, quiet libraries."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from panoply.config import DType, Rendering
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.backbone.smollm2 import NAME, embedded_model
from panoply.hub.door.fetch import fetch, is_hub_name
from panoply.hub.door.loading import load_config, load_tokenizer
from panoply.model.device import chosen_dtype

MEMBERS = "members"
"""Folder of the adapters of a reward model that consists of them."""


def resolve(name: str) -> str:
    """Returns the folder of a language model, after looking at it.

    Raises:
        FileNotFoundError: a local path that is no model folder, or a hub name that is neither
            a local folder nor reachable.
        ValueError: a reward model of adapters, without which its backbone is another model.
    """
    if name == NAME:
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model folder {name!r} has no config.json")
        if (path / MEMBERS).is_dir():
            raise ValueError(
                f"{name!r} is a reward model of adapters, which are not merged into its weights: "
                "name the model that it was trained on, or train with `members` 'heads'"
            )
        return str(path)
    if path.exists() or not is_hub_name(name):
        raise FileNotFoundError(
            f"model {name!r} is neither a folder nor a hub name 'owner/name' nor {NAME!r}"
        )
    return str(fetch(name))


def load_renderer(name: str, rendering: Rendering) -> Renderer:
    """Returns the renderer of a pretrained model, by its tokenizer alone.

    Raises:
        FileNotFoundError: see `resolve`.
    """
    return Renderer(load_tokenizer(Path(resolve(name))), rendering)


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """Returns bfloat16 where the hardware multiplies it fast, float32 elsewhere.

    A choice for one load (`panoply.model.device.placed`) goes before the name.

    That is CUDA, and CPUs with AMX (3x float32) or AVX512-BF16 (1.7x); without either it is
    emulated, 5x slower than float32.
    """
    if (chosen := chosen_dtype()) is not None:
        return chosen
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_amx = torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    has_avx = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if has_amx or has_avx else torch.float32


def count_layers(name: str) -> int:
    """Returns the number of layers of a model without loading its weights."""
    return int(load_config(Path(resolve(name))).num_hidden_layers)


def state_size(name: str) -> int:
    """Returns the numbers of a model's state without loading its weights."""
    return int(load_config(Path(resolve(name))).get_text_config().hidden_size)


def check_vocabulary(renderer: Renderer, model: nn.Module) -> None:
    """Checks that a model has an embedding for every token that its tokenizer may give.

    Tokens that were added to a tokenizer and not to the model would fail deep inside a forward, or
    on an accelerator read what is not theirs.

    Raises:
        ValueError: a token id lies beyond the vocabulary, with the fix.
    """
    token, last = max(renderer.tokenizer.get_vocab().items(), key=lambda item: item[1])
    size = cast(Any, model).get_input_embeddings().weight.shape[0]
    if last >= size:
        raise ValueError(
            f"the tokenizer gives token {token!r} the id {last}, but the model has {size} "
            f"embeddings (ids 0 to {size - 1}): call model.resize_token_embeddings({last + 1}), "
            "train and save it so, or take the tokenizer that the model came with"
        )


def silence_libraries() -> None:
    """Keeps transformers' progress bars and advice out of a run's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft asks for it by the name that transformers gives up.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
