"""Published checkpoints by their layout, loaded without their code.

A layout is one value of `LAYOUTS`. Everything else is refused by name: a generic loader would draw
the head at random where it finds none, and drop the second layer, with a warning at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from panoply.config.steps import StepRule
from panoply.hub.door.checkpoint import Checkpoint, few, read_fields
from panoply.hub.door.loading import load_config
from panoply.hub.example_conversations import example_trees, sequences
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.heads import (
    LINEAR_NAMES,
    head_under,
    labels_error,
    tensors_beside,
    unknown_head,
    value_head_of,
)
from panoply.hub.published.loading import (
    LoadOptions,
    load_chat_tokenizer,
    load_whole,
    make_backbone,
    on_best_device,
)
from panoply.hub.published.pairwise import load_pairwise
from panoply.hub.published.process import ProcessModel
from panoply.hub.reward_model import RewardModel

TWO_LAYERS = ("0.bias", "0.weight", "2.bias", "2.weight")
Fields: TypeAlias = Mapping[str, Any]
"""A parsed config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A layout of published checkpoints: a decoder with a linear head, unless a field differs."""

    title: str
    """As errors list it."""
    architectures: tuple[str, ...]
    """Class names in config.json; `*` stands for any family that transformers has a class of."""
    counts_labels: bool = True
    """True where config.json says how many outputs a linear head has."""
    two_layers: bool = False
    """True where the head may have two layers, with ReLU between."""
    num_outputs: int = 1
    """Outputs of the head: 1 at the last token, or 2 classes at the separator of each step."""
    is_pairwise: bool = False

    def covers(self, architecture: str) -> bool:
        """Returns whether a class is one of this layout."""
        import transformers

        if architecture in self.architectures:
            return True
        suffixes = tuple(name[1:] for name in self.architectures if name.startswith("*"))
        return architecture.endswith(suffixes) and hasattr(transformers, architecture)


LAYOUTS = (
    Layout(
        title="transformers' *ForSequenceClassification with one label",
        architectures=("*ForSequenceClassification",),
    ),
    Layout(
        title="OpenRLHF's RewardModel",
        architectures=("RewardModel",),
        counts_labels=False,  # its class has none, and its configuration says nothing of them
    ),
    # infly/INF-ORM-Llama3.1-70B; Qwen/Qwen2.5-Math-RM-72B and Qwen/WorldPM-72B.
    Layout(
        title="INFORMForSequenceClassification and Qwen2ForRewardModel with two layers",
        architectures=("INFORMForSequenceClassification", "Qwen2ForRewardModel"),
        two_layers=True,
    ),
    # Qwen/Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K; others' with a linear head.
    Layout(
        title="Qwen2ForProcessRewardModel and *ForTokenClassification with two classes",
        architectures=("Qwen2ForProcessRewardModel", "*ForTokenClassification"),
        two_layers=True,
        num_outputs=2,
    ),
    Layout(
        title="language models that answer A or B",
        architectures=("*ForCausalLM",),
        is_pairwise=True,
    ),
)


def load_published(checkpoint: Checkpoint, options: LoadOptions | None = None) -> RewardModel[Any]:
    """Loads a checkpoint by its layout; its own code runs only if that is asked for and needed.

    Raises:
        ValueError: the layout is unknown, the head is missing or not one number, a weight is
            missing, or the tokenizer does not fit.
    """
    from transformers import MODEL_MAPPING, AutoModel

    options = options or LoadOptions()
    folder = checkpoint.folder
    fields = read_fields(folder / "config.json")
    architecture, layout = _architecture(fields), layout_of(fields)
    value_head = value_head_of(checkpoint)
    if layout is None and not value_head:
        if options.code and _brings_classifier(fields):
            return load_remote(checkpoint, fields, options.max_tokens)
        raise ValueError(_unknown(checkpoint, fields))
    if layout and layout.is_pairwise and not value_head:
        _check_no_score(checkpoint, architecture)
        return load_pairwise(checkpoint, fields, options.max_tokens)
    try:
        config = load_config(folder)
    except ValueError as error:  # a model type that transformers has no code for
        raise ValueError(f"{_unknown(checkpoint, fields)} ({error})") from error
    if type(config) not in MODEL_MAPPING:
        raise ValueError(_unknown(checkpoint, fields))
    prefix = cast(Any, MODEL_MAPPING[type(config)]).base_model_prefix + "."
    beside = tensors_beside(checkpoint, prefix)
    size = int(config.get_text_config().hidden_size)
    if value_head:
        head = value_head.filled(size)
    else:
        assert layout is not None  # refused above
        head = read_head(checkpoint, layout, beside, config)
    tokenizer = load_chat_tokenizer(folder)
    unused = {name for name in checkpoint.shapes if not name.startswith(prefix)}
    model = load_whole(AutoModel, folder, fields, unused=unused, config=config)
    backbone = make_backbone(folder.name, model, tokenizer, options.max_tokens)
    if layout and layout.num_outputs > 1 and not value_head:
        return ProcessModel(backbone, head, options.steps or StepRule())
    return HeadModel(backbone, head, is_value_head=value_head is not None)


def _check_no_score(checkpoint: Checkpoint, architecture: str) -> None:
    """Checks that a language model has no linear head beside it, which it would be loaded without.

    Raises:
        ValueError: it has one.
    """
    for stem in LINEAR_NAMES:
        head = head_under(checkpoint, stem)
        if head and head.is_linear and head.num_outputs == 1:
            classifier = architecture.replace("ForCausalLM", "ForSequenceClassification")
            raise ValueError(
                f"config.json in {str(checkpoint.folder)!r} names the architecture "
                f"{architecture!r}, and {stem}.weight beside the model is a reward head: write "
                f'"architectures": ["{classifier}"] and "num_labels": 1 there'
            )


def read_head(checkpoint: Checkpoint, layout: Layout, names: set[str], config: Any) -> nn.Module:
    """Returns the head of a checkpoint, filled.

    Args:
        checkpoint: with its tensors.
        layout: of the checkpoint.
        names: tensors beside the backbone.
        config: of the backbone.

    Raises:
        ValueError: it is missing, unknown, or gives another number of outputs than its layout has.
    """
    folder, architecture = checkpoint.folder, config.architectures[0]
    if not names:
        raise ValueError(
            f"{str(folder)!r} ({architecture}) holds no head: there is no score.weight beside its "
            "backbone, and transformers would draw one at random. Fetch the trained checkpoint; if "
            "it was trained with LoRA, save the head with it (modules_to_save=['score'])"
        )
    heads = [head_under(checkpoint, stem) for stem in LINEAR_NAMES]
    head = next((head for head in heads if head and len(head.names) == len(names)), None)
    if not head or not (head.is_linear or (layout.two_layers and head.names == TWO_LAYERS)):
        deeper = [each.title for each in LAYOUTS if each.two_layers]
        raise ValueError(unknown_head(folder, architecture, names, ", ".join(deeper)))
    if head.is_linear and layout.counts_labels and config.num_labels != layout.num_outputs:
        raise ValueError(labels_error(head, config.num_labels, layout.num_outputs))
    return head.filled(int(config.get_text_config().hidden_size), layout.num_outputs)


def load_remote(checkpoint: Checkpoint, fields: Fields, max_tokens: int = 0) -> HeadModel:
    """Loads a sequence classifier by the code in its folder, which runs.

    Its scores must be those of a module named `score` on the last token, so that they come from
    token trees here.

    Raises:
        ValueError: they are not.
    """
    from transformers import AutoModelForSequenceClassification

    folder = checkpoint.folder
    tokenizer = load_chat_tokenizer(folder)
    loader = AutoModelForSequenceClassification
    classifier = on_best_device(load_whole(loader, folder, fields, code=True).eval())
    name = type(classifier).__name__
    if not isinstance(head := getattr(classifier, "score", None), nn.Module):
        raise ValueError(
            f"{name} in {str(folder)!r} has no head named 'score', so its scores cannot be "
            "computed here"
        )
    # A copy: the classifier computes its own scores below as it was loaded.
    backbone = make_backbone(folder.name, classifier.base_model, tokenizer, max_tokens)
    model = HeadModel(backbone, deepcopy(head))
    trees = example_trees(tokenizer)
    expected_R = last_logits(classifier, sequences(trees))
    score_R = model.score_trees(trees)
    bound = 1e-3 if model.backbone.decoder.dtype == torch.float32 else 0.05
    if not (expected_R - score_R).abs().max() <= bound * score_R.std():
        raise ValueError(
            f"{name} in {str(folder)!r} scores otherwise than by its 'score' at the last token: "
            f"{expected_R[0]:.4g} where that gives {score_R[0]:.4g}. It does not load"
        )
    return model


@torch.inference_mode()
def last_logits(classifier: Any, rows: list[tuple[int, ...]]) -> torch.Tensor:
    """Returns a classifier's own logit at the last token of each row, alone: `[R]` float32.

    A classifier that would look for its pad token is kept from it.
    """
    pad, classifier.config.pad_token_id = classifier.config.pad_token_id, None
    try:
        logits = [
            classifier(input_ids=torch.tensor([row], device=classifier.device)).logits
            for row in rows
        ]
    finally:
        classifier.config.pad_token_id = pad
    return torch.stack([values.float().reshape(-1)[-1].cpu() for values in logits])


def is_pairwise(folder: Path, fields: Fields) -> bool:
    """Returns whether a folder's layout is that of models that compare two responses.

    Raises:
        FileNotFoundError, ValueError: its weights cannot be read.
    """
    checkpoint, layout = Checkpoint.open(folder), layout_of(fields)
    return layout is not None and layout.is_pairwise and value_head_of(checkpoint) is None


def scores_steps(fields: Fields) -> bool:
    """Returns whether a configuration's layout is that of process reward models."""
    layout = layout_of(fields)
    return layout is not None and layout.num_outputs > 1


def layout_of(fields: Fields) -> Layout | None:
    """Returns the layout that a configuration names; None where there is none of it."""
    architecture = _architecture(fields)
    return next((layout for layout in LAYOUTS if layout.covers(architecture)), None)


def _architecture(fields: Fields) -> str:
    return str((fields.get("architectures") or ["none"])[0])


def _brings_classifier(fields: Fields) -> bool:
    return "AutoModelForSequenceClassification" in (fields.get("auto_map") or {})


def _unknown(checkpoint: Checkpoint, fields: Fields) -> str:
    """Returns the error for a layout that does not load."""
    beside = sorted(n for n in checkpoint.shapes if not n.startswith(("model.", "transformer.")))
    code = ""
    if _brings_classifier(fields):
        code = (
            " It brings code of its own as a sequence classifier: trust_remote_code=True runs that"
        )
    if not fields.get("architectures") and "score.weight" in beside:
        code += (
            " Its config.json names no architecture: write one there, as in "
            '"architectures": ["LlamaForSequenceClassification"]'
        )
    return (
        f"{str(checkpoint.folder)!r} is in no layout that loads here: architecture "
        f"{_architecture(fields)!r} of model type {fields.get('model_type')!r}, with tensors "
        f"beside the backbone {few(beside) or 'none'}. Known are ArmoRM's layout, "
        f"{', '.join(layout.title for layout in LAYOUTS)}.{code}"
    )
