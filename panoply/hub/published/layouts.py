"""Published checkpoints by their layout, loaded without their code.

A layout is one value of `LAYOUTS`, with the function that loads it. Everything else is refused by
name. A generic loader would draw the head at random where it finds none, and drop the second layer,
with a warning at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from panoply.hub.example_conversations import example_trees, sequences
from panoply.hub.published.checkpoint import Checkpoint, few
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.loading import load_tokenizer, load_whole, make_backbone
from panoply.hub.published.pairwise import load_pairwise
from panoply.hub.reward_model import RewardModel
from panoply.model.device import best_device

LINEAR_NAMES = ("score", "value_head")
TWO_LAYER = ("INFORMForSequenceClassification", "Qwen2ForRewardModel")
"""infly/INF-ORM-Llama3.1-70B; Qwen/Qwen2.5-Math-RM-72B and Qwen/WorldPM-72B. With ReLU between."""
TWO_LAYER_NAMES = {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}
Fields: TypeAlias = Mapping[str, Any]
"""A parsed config.json."""
HeadReader: TypeAlias = Callable[[Checkpoint, Collection[str], Any], nn.Module]
"""Fills a head from the tensors beside the backbone, whose names it gets with the configuration."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of published checkpoints."""

    title: str
    """As errors list it."""
    architectures: tuple[str, ...]
    """Class names in config.json; `*` stands for any family that transformers has a class of."""
    load: Callable[[Checkpoint, Fields], RewardModel[Any]]

    def covers(self, architecture: str) -> bool:
        """Returns whether a class is one of this layout."""
        import transformers

        if architecture in self.architectures:
            return True
        suffixes = tuple(name[1:] for name in self.architectures if name.startswith("*"))
        return architecture.endswith(suffixes) and hasattr(transformers, architecture)


def load_published(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> RewardModel[Any]:
    """Loads a checkpoint by its layout; its own code runs only if that is asked for and needed.

    Raises:
        ValueError: the layout is unknown, the head is missing or not one number, a weight is
            missing, or the tokenizer does not fit.
    """
    fields: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_text())
    architecture = _architecture(fields)
    for layout in LAYOUTS:
        if layout.covers(architecture):
            return layout.load(checkpoint, fields)
    if trust_remote_code and _brings_classifier(fields):
        return load_remote(checkpoint, fields)
    raise ValueError(_unknown(checkpoint, fields))


def load_head_model(checkpoint: Checkpoint, fields: Fields, read_head: HeadReader) -> HeadModel:
    """Loads a decoder with a scalar head.

    Raises:
        ValueError: see `load_published`.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    folder = checkpoint.folder
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:  # a model type that transformers has no code for
        raise ValueError(_unknown(checkpoint, fields)) from error
    prefix = cast(Any, MODEL_MAPPING[type(config)]).base_model_prefix + "."
    beside = {name for name in checkpoint.shapes if not name.startswith(prefix)}
    names = beside - {"lm_head.weight"}
    if not names:
        raise ValueError(
            f"{str(folder)!r} ({_architecture(fields)}) holds no head: there is no score.weight "
            "beside its backbone, and transformers would draw one at random. Fetch the trained "
            "checkpoint; if it was trained with LoRA, save the head with it "
            "(modules_to_save=['score'])"
        )
    head = read_head(checkpoint, names, config)
    tokenizer = load_tokenizer(folder)
    model = load_whole(AutoModel, folder, fields, read=beside, config=config)
    return HeadModel(make_backbone(folder.name, model, tokenizer), head)


def linear_head(checkpoint: Checkpoint, names: Collection[str], config: Any) -> nn.Module:
    """Returns the filled head s = w . z, or s = w . z + b.

    Raises:
        ValueError: the head has another form, or more than one output.
    """
    stem = _linear_stem(checkpoint, names)
    layer = nn.Linear(_hidden_size(config), 1, f"{stem}.bias" in names)
    return _filled(checkpoint, layer, f"{stem}.", "linear")


def one_label_head(checkpoint: Checkpoint, names: Collection[str], config: Any) -> nn.Module:
    """Returns the linear head of a classifier with one label.

    Raises:
        ValueError: the configuration counts another number of labels, or as for `linear_head`.
    """
    name = f"{_linear_stem(checkpoint, names)}.weight"
    if config.num_labels != 1:
        raise ValueError(
            f"{str(checkpoint.folder / 'config.json')!r} has num_labels {config.num_labels} (2 "
            "where it does not say), and a reward model has 1: mend the file "
            f'("num_labels": 1) if {name} {list(checkpoint.shapes[name])} is one score, or '
            "name another model if it is a classifier"
        )
    return linear_head(checkpoint, names, config)


def two_layer_head(checkpoint: Checkpoint, names: Collection[str], config: Any) -> nn.Module:
    """Returns the filled head s = w_2 . relu(W_1 z + b_1) + b_2, or a linear one.

    Raises:
        ValueError: see `one_label_head`.
    """
    if set(names) != TWO_LAYER_NAMES:
        return one_label_head(checkpoint, names, config)
    width = checkpoint.shapes["score.0.weight"][0]
    layers = nn.Sequential(nn.Linear(_hidden_size(config), width), nn.ReLU(), nn.Linear(width, 1))
    return _filled(checkpoint, layers, "score.", "two-layer")


LAYOUTS = (
    Layout(
        title="transformers' *ForSequenceClassification with one label",
        architectures=("*ForSequenceClassification",),
        load=partial(load_head_model, read_head=one_label_head),
    ),
    Layout(
        title="OpenRLHF's RewardModel",  # without labels, of which its configuration says nothing
        architectures=("RewardModel",),
        load=partial(load_head_model, read_head=linear_head),
    ),
    Layout(
        title=" and ".join(TWO_LAYER),
        architectures=TWO_LAYER,
        load=partial(load_head_model, read_head=two_layer_head),
    ),
    Layout(
        title="language models that answer A or B",
        architectures=("*ForCausalLM",),
        load=load_pairwise,
    ),
)


def load_remote(checkpoint: Checkpoint, fields: Fields) -> HeadModel:
    """Loads a sequence classifier by the code in its folder, which runs.

    Its scores must be those of a module named `score` on the last token, so that they come from
    token trees here.

    Raises:
        ValueError: they are not.
    """
    from transformers import AutoModelForSequenceClassification

    folder = checkpoint.folder
    tokenizer = load_tokenizer(folder)
    loader = AutoModelForSequenceClassification
    classifier = load_whole(loader, folder, fields, trust_remote_code=True).eval()
    classifier = classifier.to(best_device())
    name = type(classifier).__name__
    if not isinstance(head := getattr(classifier, "score", None), nn.Module):
        raise ValueError(
            f"{name} in {str(folder)!r} has no head named 'score', so its scores cannot be "
            "computed here"
        )
    # A copy: the classifier computes its own scores below as it was loaded.
    model = HeadModel(make_backbone(folder.name, classifier.base_model, tokenizer), deepcopy(head))
    trees = example_trees(model.backbone.renderer)
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
    return (
        f"{str(checkpoint.folder)!r} is in no layout that loads here: architecture "
        f"{_architecture(fields)!r} of model type {fields.get('model_type')!r}, with tensors "
        f"beside the backbone {few(beside) or 'none'}. Known are ArmoRM's layout, "
        f"{', '.join(layout.title for layout in LAYOUTS)}.{code}"
    )


def _linear_stem(checkpoint: Checkpoint, names: Collection[str]) -> str:
    """Returns the name of a linear head's module.

    Raises:
        ValueError: the tensors are not those of one linear layer.
    """
    for stem in LINEAR_NAMES:
        if f"{stem}.weight" in names and set(names) <= {f"{stem}.weight", f"{stem}.bias"}:
            return stem
    raise ValueError(
        f"{str(checkpoint.folder)!r} has a head that is not known: {few(sorted(names))}. "
        f"Known are {' or '.join(LINEAR_NAMES)} (one layer), and score.0 and score.2 of "
        f"{' and '.join(TWO_LAYER)}"
    )


def _hidden_size(config: Any) -> int:
    return int(config.get_text_config().hidden_size)


def _filled(checkpoint: Checkpoint, head: nn.Module, prefix: str, kind: str) -> nn.Module:
    """Fills a head from the tensors under a prefix, whose shapes must fit."""
    shapes = {prefix + name: tuple(value.shape) for name, value in head.state_dict().items()}
    checkpoint.check(shapes, f"a {kind} head with one score")
    head.load_state_dict({name: checkpoint.read(prefix + name) for name in head.state_dict()})
    return head
