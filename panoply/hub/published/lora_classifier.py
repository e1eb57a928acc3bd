"""LoRA adapters of reward models: the head must be in them, beside them, or in the model below."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from torch import nn

from panoply.hub.backbone.pretrained import choose_dtype
from panoply.hub.door.checkpoint import Checkpoint, read_fields, stored_dtype
from panoply.hub.door.fetch import fetch
from panoply.hub.door.loading import load_adapted, load_config, load_model
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.heads import VALUE_HEAD_FILE, value_head_of
from panoply.hub.published.loading import load_chat_tokenizer, make_backbone, on_best_device
from panoply.model.device import best_device

HEAD = re.compile(r"base_model\.model\.score\.(modules_to_save\.(default\.)?)?weight")
"""The head inside an adapter, as peft's `modules_to_save` writes it."""
WEIGHTS = "adapter_model.safetensors"


def load_adapter(folder: Path, max_tokens: int = 0) -> HeadModel:
    """Loads an adapter on its base model, merged.

    Where the adapter holds embeddings of its own (it was trained after tokens were added), the
    base model's vocabulary is resized to them.

    Args:
        folder: of the adapter.
        max_tokens: most tokens of a conversation; 0: as many as the model has positions.

    Raises:
        FileNotFoundError: the base model cannot be had.
        ValueError: the adapter is of no reward model, or neither it nor the base model holds a
            head with one score.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    adapter = read_fields(folder / "adapter_config.json")
    stored = Checkpoint.open(folder, WEIGHTS)
    base = _fetch_base(adapter, folder)
    if (base / "adapter_config.json").is_file():
        raise ValueError(
            f"the base model {str(base)!r} of the adapter in {str(folder)!r} is an adapter itself: "
            "merge that into its own base first (merge_and_unload), and name the result"
        )
    brings_tokenizer = (folder / "tokenizer_config.json").is_file()
    fields = read_fields(base / "config.json")
    dtype, config = choose_dtype(stored_dtype(fields), best_device()), load_config(base)
    value_head = value_head_of(stored)
    if value_head:
        model = load_model(AutoModelForCausalLM, base, dtype=dtype, config=config)
    else:
        _check_head(adapter, stored, Checkpoint.open(base))
        config.num_labels = 1
        model = load_model(
            AutoModelForSequenceClassification,
            base,
            dtype=dtype,
            config=config,
            unused=("lm_head.weight",),
            drawn=("score.weight",),
        )
    if num_embeddings := _num_embeddings(stored, model):
        model.resize_token_embeddings(num_embeddings, mean_resizing=False)
    merged = load_adapted(model, folder).merge_and_unload()
    tokenizer = load_chat_tokenizer(folder if brings_tokenizer else base)
    backbone = make_backbone(folder.name, on_best_device(merged.base_model), tokenizer, max_tokens)
    if value_head:
        size = int(merged.config.get_text_config().hidden_size)
        return HeadModel(backbone, value_head.filled(size), is_value_head=True)
    return HeadModel(backbone, cast(nn.Module, merged.score))


def _fetch_base(adapter: dict[str, Any], folder: Path) -> Path:
    """Returns the folder of the model that an adapter belongs to.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: the adapter names none, or is of a kind that leaves no weights to merge.
    """
    file, kind = str(folder / "adapter_config.json"), adapter.get("peft_type", "LORA")
    if "PROMPT" in str(kind) or str(kind) in ("PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT"):
        raise ValueError(
            f"{file!r} is of type {kind!r}, which puts tokens before a text and cannot be merged "
            "into a model: take an adapter of LoRA"
        )
    name = adapter.get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"{file!r} names no model in base_model_name_or_path: write the folder or hub name of "
            "the model that it was trained on there"
        )
    try:
        return fetch(str(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the base model of the adapter in {str(folder)!r} cannot be had: {error}; write the "
            "folder that holds it into base_model_name_or_path of its adapter_config.json"
        ) from error


def _check_head(adapter: dict[str, Any], stored: Checkpoint, below: Checkpoint) -> None:
    """Checks that a head with one score is in an adapter, or in the model below.

    Raises:
        ValueError: it is not, or the adapter is of another kind of model.
    """
    folder, base = str(stored.folder), str(below.folder)
    if adapter.get("task_type") not in (None, "SEQ_CLS"):
        raise ValueError(
            f"the adapter in {folder!r} is of task type {adapter['task_type']!r}; a reward model's "
            f"is 'SEQ_CLS', or it has its value head beside it in {VALUE_HEAD_FILE}"
        )
    shape = next((shape for name, shape in stored.shapes.items() if HEAD.fullmatch(name)), None)
    if adapter.get("task_type") is None and "score" not in (adapter.get("modules_to_save") or ()):
        shape = shape or below.shapes.get("score.weight")  # it was trained below a head that stayed
    if shape is None:
        raise ValueError(
            f"the adapter in {folder!r} holds no head, and none that it was trained on is in "
            f"its base model {base!r}: the scores it learned are lost. Train it again with "
            f"modules_to_save=['score'], and look for 'score' in {WEIGHTS}"
        )
    if shape[0] != 1:
        raise ValueError(
            f"the head of the adapter in {folder!r} has shape {list(shape)}, which is "
            f"{shape[0]} labels; a reward model has 1"
        )


def _num_embeddings(stored: Checkpoint, model: Any) -> int:
    """Returns how many embeddings an adapter brings or was trained on; 0 where it has none."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    for key, shape in stored.shapes.items():
        if f".{name}." not in key:
            continue
        if key.endswith("lora_embedding_A") and len(shape) == 2:
            return shape[1]
        if key.endswith("weight") and "lora_" not in key:
            return shape[0]
    return 0
