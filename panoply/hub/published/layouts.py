"""Published checkpoints by their layout, loaded without their code.

A layout is one value of `LAYOUTS`. Everything else is refused by name: a generic loader would draw
the head at random where it finds none, and drop the second layer, with a warning at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
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
TWO_LAYER_NAMES = {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}
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
    Layout(
        title="language models that answer A or B",
        architectures=("*ForCausalLM",),
        is_pairwise=True,
    ),
)


def load_published(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> RewardModel[Any]:
    """Loads a checkpoint by its layout; its own code runs only if that is asked for and needed.

    Raises:
        ValueError: the layout is unknown, the head is missing or not one number, a weight is
            missing, or the tokenizer does not fit.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    folder = checkpoint.folder
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    architecture = _architecture(fields)
    layout = next((layout for layout in LAYOUTS if layout.covers(architecture)), None)
    if layout is None:
        if trust_remote_code and _brings_classifier(fields):
            return load_remote(checkpoint, fields)
        raise ValueError(_unknown(checkpoint, fields))
    if layout.is_pairwise:
        return load_pairwise(checkpoint, fields)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:  # a model type that transformers has no code for
        raise ValueError(_unknown(checkpoint, fields)) from error
    prefix = cast(Any, MODEL_MAPPING[type(config)]).base_model_prefix + "."
    beside = {name for name in checkpoint.shapes if not name.startswith(prefix)}
    head = read_head(checkpoint, layout, beside - {"lm_head.weight"}, config)
    tokenizer = load_tokenizer(folder)
    model = load_whole(AutoModel, folder, fields, read=beside, config=config)
    return HeadModel(make_backbone(folder.name, model, tokenizer), head)


def read_head(checkpoint: Checkpoint, layout: Layout, names: set[str], config: Any) -> nn.Module:
    """Returns the head of a checkpoint, filled.

    Args:
        checkpoint: with its tensors.
        layout: of the checkpoint.
        names: tensors beside the backbone.
        config: of the backbone.

    Raises:
        ValueError: it is missing, unknown, or gives another number of scores than one.
    """
    folder, architecture = checkpoint.folder, config.architectures[0]
    size = int(config.get_text_config().hidden_size)
    if not names:
        raise ValueError(
            f"{str(folder)!r} ({architecture}) holds no head: there is no score.weight beside its "
            "backbone, and transformers would draw one at random. Fetch the trained checkpoint; if "
            "it was trained with LoRA, save the head with it (modules_to_save=['score'])"
        )
    if layout.two_layers and names == TWO_LAYER_NAMES:
        width = checkpoint.shapes["score.0.weight"][0]
        layers = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 1))
        return _filled(checkpoint, layers, "score.", "two-layer")
    stem = next((stem for stem in LINEAR_NAMES if f"{stem}.weight" in names), "")
    if not stem or not names <= {f"{stem}.weight", f"{stem}.bias"}:
        deeper = [layout.title for layout in LAYOUTS if layout.two_layers]
        raise ValueError(
            f"{str(folder)!r} ({architecture}) has a head that is not known: "
            f"{few(sorted(names))}. Known are {' or '.join(LINEAR_NAMES)} (one layer), and score.0 "
            f"and score.2 of {', '.join(deeper)}"
        )
    if layout.counts_labels and config.num_labels != 1:
        raise ValueError(
            f"{str(folder / 'config.json')!r} has num_labels {config.num_labels} (2 where it "
            'does not say), and a reward model has 1: mend the file ("num_labels": 1) if '
            f"{stem}.weight {list(checkpoint.shapes[f'{stem}.weight'])} is one score, or name "
            "another model if it is a classifier"
        )
    layer = nn.Linear(size, 1, f"{stem}.bias" in names)
    return _filled(checkpoint, layer, f"{stem}.", "linear")


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


def _filled(checkpoint: Checkpoint, head: nn.Module, prefix: str, kind: str) -> nn.Module:
    """Fills a head from the tensors under a prefix, whose shapes must fit."""
    shapes = {prefix + name: tuple(value.shape) for name, value in head.state_dict().items()}
    checkpoint.check(shapes, f"a {kind} head with one score")
    head.load_state_dict({name: checkpoint.read(prefix + name) for name in head.state_dict()})
    return head
