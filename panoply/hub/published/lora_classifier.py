"""LoRA adapters of reward models: the head must be in them, beside them, or in the model below.

An adapter is merged into its base model, or lies on a loaded base that it shares with others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from panoply.hub.backbone.adapters import CONFIG, WEIGHTS, SharedBackbone
from panoply.hub.backbone.pretrained import check_vocabulary, choose_dtype
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import Checkpoint, read_fields, stored_dtype
from panoply.hub.door.fetch import fetch
from panoply.hub.door.loading import load_adapted, load_config, load_model
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.heads import VALUE_HEAD_FILE, value_head_of
from panoply.hub.published.loading import (
    limits_of,
    load_chat_tokenizer,
    make_backbone,
    on_best_device,
)
from panoply.model.device import best_device
from panoply.model.tree import TokenTree

HEAD = re.compile(r"base_model\.model\.score\.(modules_to_save\.(default\.)?)?weight")
"""The head inside an adapter, as peft's `modules_to_save` writes it."""
PROMPT_KINDS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"),
    "CPT",
)
"""Types of adapters that are tokens before a text, and no weights."""


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

    adapter = read_fields(folder / CONFIG)
    stored = Checkpoint.open(folder, WEIGHTS)
    base = base_of(folder)
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


class SharedAdapterModel(HeadModel):
    """A published reward model of a head and an adapter on a backbone that others may share."""

    def __init__(
        self,
        name: str,
        shared: SharedBackbone,
        adapter: str,
        renderer: Renderer,
        head: nn.Module,
        *,
        is_value_head: bool,
    ) -> None:
        self.shared, self.adapter = shared, adapter
        backbone = shared.view(name, renderer, [adapter])
        super().__init__(backbone, head, is_value_head=is_value_head)

    def score_trees(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the scores `[R]` of all responses of some trees, tree by tree."""
        with self.shared.using(self.adapter):
            return super().score_trees(trees)

    def prepack(self) -> None:
        """Lays the shared backbone's weights out for scoring; see `RewardModel.prepack`."""
        self.shared.prepack()

    def release(self) -> None:
        """Takes the adapter off the backbone; the model scores no more."""
        self.shared.remove(self.adapter)


def load_shared_adapter(folder: Path, shared: SharedBackbone | None = None) -> SharedAdapterModel:
    """Loads an adapter on its base model, beside others.

    Args:
        folder: of the adapter.
        shared: its base model, where that is loaded already; None loads it.

    Raises:
        FileNotFoundError, ValueError: as `load_adapter`, or the adapter shares no backbone.
    """
    from transformers import AutoModel

    adapter, base = read_fields(folder / CONFIG), base_of(folder)
    stored, below = Checkpoint.open(folder, WEIGHTS), Checkpoint.open(base)
    value_head = value_head_of(stored)
    if not value_head:
        _check_head(adapter, stored, below)
    brings_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_chat_tokenizer(folder if brings_tokenizer else base)
    if shared is None:
        dtype = choose_dtype(stored_dtype(read_fields(base / "config.json")), best_device())
        model = load_model(AutoModel, base, dtype=dtype, unused=None)
        shared = SharedBackbone(make_backbone(base.name, model, tokenizer))
    decoder = shared.backbone.decoder
    renderer = Renderer(tokenizer, limits_of(folder.name, decoder.config, 0, "header_first"))
    check_vocabulary(renderer, decoder.model)
    head: nn.Module
    if value_head:
        head = value_head.filled(decoder.hidden_size)
    else:
        inside = [name for name in stored.shapes if HEAD.fullmatch(name)]
        weight_1D = stored.read(inside[0]) if inside else below.read("score.weight")
        head = nn.Linear(decoder.hidden_size, 1, bias=False)
        head.load_state_dict({"weight": weight_1D})
    name = shared.add(folder)
    return SharedAdapterModel(
        folder.name, shared, name, renderer, head, is_value_head=value_head is not None
    )


def base_of(folder: Path) -> Path:
    """Returns the folder of the model that an adapter was trained on.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: the adapter names none, is of a kind that leaves no weights to merge, or its
            base model is an adapter itself.
    """
    base = _fetch_base(read_fields(folder / CONFIG), folder)
    if (base / CONFIG).is_file():
        raise ValueError(
            f"the base model {str(base)!r} of the adapter in {str(folder)!r} is an adapter itself: "
            "merge that into its own base first (merge_and_unload), and name the result"
        )
    return base


def _fetch_base(adapter: dict[str, Any], folder: Path) -> Path:
    """Returns the folder of the model that an adapter belongs to.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: the adapter names none, or is of a kind that leaves no weights to merge.
    """
    file, kind = str(folder / "adapter_config.json"), adapter.get("peft_type", "LORA")
    if kind in PROMPT_KINDS:
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
