"""Fetching published models, and loading them whole, with limits on what they read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from panoply.config import Rendering
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.pretrained import check_vocabulary, choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.published.checkpoint import few, stored_dtype
from panoply.model.decoder import find_layers
from panoply.model.device import best_device

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Files fetched from a hub: configuration, weights and tokenizer. Never a pickle."""
MOST_PROMPT = 4096
"""Most tokens of a prompt, however many positions a model has."""


def fetch(name: str, *, code: bool = False) -> Path:
    """Returns the folder of a model: a local one, or one of the hub, fetched once.

    Args:
        name: a folder, or a hub name 'owner/name'.
        code: fetch Python files too.

    Raises:
        FileNotFoundError: neither a folder, nor a hub name that can be had.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not is_hub_name(name):
        raise FileNotFoundError(f"model {name!r} is neither a folder nor a hub name 'owner/name'")
    patterns = [*FILES, "*.py"] if code else [*FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model {name!r} is no local folder, and the hub could not give it: "
            f"{str(error).splitlines()[0]} Name a local folder, or fetch it with a network"
        ) from error


def is_hub_name(name: str) -> bool:
    """Returns whether a name may be one of the hub, 'owner/name'."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def load_whole(
    loader: Any,
    folder: Path,
    fields: Mapping[str, Any],
    *,
    read: Collection[str] = (),
    **options: Any,
) -> Any:
    """Returns a model with every weight from its folder, none at random and none dropped.

    Args:
        loader: an auto class of transformers.
        folder: of the model.
        fields: its configuration, which names the dtype.
        read: names of tensors that are read elsewhere.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: a weight would be random, or one would be dropped.
    """
    model, info = loader.from_pretrained(
        folder,
        dtype=choose_dtype(stored_dtype(fields), best_device()),
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # refused below
        output_loading_info=True,
        **{"trust_remote_code": False} | options,
    )
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    if random := sorted(mismatched | set(info["missing_keys"])):
        raise ValueError(
            f"{str(folder)!r} lacks weights that would be random: {few(random)}, or holds them in "
            "another shape than its config.json asks for. Fetch it again"
        )
    if dropped := sorted(set(info["unexpected_keys"]) - set(read)):
        raise ValueError(
            f"{str(folder)!r} holds weights that would go unused: {few(dropped)}. Mend its "
            "config.json (number of layers?), or remove them"
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a model.

    Raises:
        ValueError: it has no chat template, so that what the model was trained on is not known.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has no chat template, and another than that of "
            "training gives other scores: put the template it was trained with into "
            "chat_template.jinja"
        )
    return tokenizer


def make_backbone(name: str, model: nn.Module, tokenizer: Any) -> Backbone:
    """Returns a whole decoder with a renderer, whose limits are the model's own.

    Raises:
        ValueError: the tokenizer gives tokens that the model has no embedding for, or the model is
            no decoder.
    """
    limits = limits_of(cast(Any, model).config, Renderer(tokenizer, Rendering()).num_closing)
    renderer = Renderer(tokenizer, limits)
    check_vocabulary(renderer, model)
    layers = len(cast(nn.ModuleList, model.get_submodule(find_layers(model))))
    return Backbone(name, model.to(best_device()), renderer, [layers])


def limits_of(config: Any, num_closing: int) -> Rendering:
    """Returns limits under which a render fits the positions of a model.

    A prompt has at most half of them and at most `MOST_PROMPT`; a response has the rest.
    """
    positions = getattr(config, "max_position_embeddings", None) or 2 * MOST_PROMPT
    prompt = max(8, min(MOST_PROMPT, positions // 2))
    return Rendering(
        max_prompt_tokens=prompt, max_response_tokens=max(8, positions - prompt - num_closing)
    )
