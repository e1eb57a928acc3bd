"""LoRA adapters of sequence classifiers: the head must be in them, or in the model below."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from panoply.hub.backbone.pretrained import choose_dtype
from panoply.hub.published.checkpoint import Checkpoint, stored_dtype
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.loading import fetch, load_tokenizer, make_backbone
from panoply.model.device import best_device

HEAD = re.compile(r"base_model\.model\.score\.(modules_to_save\.(default\.)?)?weight")
"""The head inside an adapter, as peft's `modules_to_save` writes it."""


def load_adapter(folder: Path) -> HeadModel:
    """Loads an adapter on its base model, merged.

    Raises:
        FileNotFoundError: the base model cannot be had.
        ValueError: the adapter is of no sequence classifier, or neither it nor the base model
            holds a head with one score.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    adapter: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    if adapter.get("task_type") not in (None, "SEQ_CLS"):
        raise ValueError(
            f"the adapter in {str(folder)!r} is of task type {adapter['task_type']!r}; a reward "
            "model's is 'SEQ_CLS'"
        )
    stored = Checkpoint.open(folder, "adapter_model.safetensors")
    base = fetch(str(adapter.get("base_model_name_or_path") or "none"))
    below = Checkpoint.open(base)
    shape = next((shape for name, shape in stored.shapes.items() if HEAD.fullmatch(name)), None)
    if adapter.get("task_type") is None and "score" not in (adapter.get("modules_to_save") or ()):
        shape = shape or below.shapes.get("score.weight")  # it was trained below a head that stayed
    if shape is None:
        raise ValueError(
            f"the adapter in {str(folder)!r} holds no head, and none that it was trained on is in "
            f"its base model {str(base)!r}: the scores it learned are lost. Train it again with "
            "modules_to_save=['score'], and look for 'score' in adapter_model.safetensors"
        )
    if shape[0] != 1:
        raise ValueError(
            f"the head of the adapter in {str(folder)!r} has shape {list(shape)}, which is "
            f"{shape[0]} labels; a reward model has 1"
        )
    brings_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(folder if brings_tokenizer else base)
    fields: dict[str, Any] = json.loads((base / "config.json").read_text())
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1,
        dtype=choose_dtype(stored_dtype(fields), best_device()),
        trust_remote_code=False,
        use_safetensors=True,
    )
    merged = cast(Any, PeftModel.from_pretrained(classifier, str(folder))).merge_and_unload()
    return HeadModel(make_backbone(folder.name, merged.base_model, tokenizer), merged.score)
