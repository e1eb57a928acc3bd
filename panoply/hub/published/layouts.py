"""Which layout a published checkpoint is in, and loading it without its code.

| architectures in config.json | tensors beside the backbone | becomes |
| --- | --- | --- |
| transformers' `*ForSequenceClassification`, one label | `score.weight`, or with `.bias` | linear |
| `RewardModel` (OpenRLHF) | `score.weight` or `value_head.weight` | linear |
| `INFORMForSequenceClassification`, `Qwen2ForRewardModel` | `score.0.*`, `score.2.*` | two layers |
| `*ForCausalLM` that answers A or B | `lm_head.weight`, or tied | pairwise |

Everything else is refused by name. A generic loader would draw the head at random where it finds
none, and drop the second layer, with a warning at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn

from panoply.hub.artefact.classifier import probe_trees
from panoply.hub.published.checkpoint import Checkpoint, few
from panoply.hub.published.head_model import HeadModel
from panoply.hub.published.loading import device, load_tokenizer, load_whole, make_backbone
from panoply.hub.published.pairwise import PairwiseModel, load_pairwise

CLASSIFIER = "ForSequenceClassification"
OPENRLHF = "RewardModel"
TWO_LAYER = ("INFORMForSequenceClassification", "Qwen2ForRewardModel")
"""infly/INF-ORM-Llama3.1-70B; Qwen/Qwen2.5-Math-RM-72B and Qwen/WorldPM-72B. With ReLU between."""
LINEAR_NAMES = ("score", "value_head")
TWO_LAYER_NAMES = {f"score.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


def load_published(
    checkpoint: Checkpoint, *, trust_remote_code: bool = False
) -> HeadModel | PairwiseModel:
    """Loads a checkpoint by its layout; its own code runs only if that is asked for and needed.

    Raises:
        ValueError: the layout is unknown, the head is missing or not one number, a weight is
            missing, or the tokenizer does not fit.
    """
    from transformers import AutoConfig, AutoModel

    folder = checkpoint.folder
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    architecture = str((fields.get("architectures") or ["none"])[0])
    if not _is_known(architecture):
        if trust_remote_code and _mapped(fields):
            return load_remote(checkpoint, fields)
        raise ValueError(_unknown(checkpoint, architecture, fields))
    if architecture.endswith("ForCausalLM"):
        return load_pairwise(checkpoint, fields)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:  # a model type that transformers has no code for
        raise ValueError(_unknown(checkpoint, architecture, fields)) from error
    head = read_head(checkpoint, architecture, config)
    tokenizer = load_tokenizer(folder)
    read = _beside(checkpoint, config)
    model = load_whole(AutoModel, folder, fields, read=read, config=config)
    return HeadModel(make_backbone(folder.name, model, tokenizer), head)


def read_head(checkpoint: Checkpoint, architecture: str, config: Any) -> nn.Module:
    """Returns the head of a checkpoint, filled.

    Raises:
        ValueError: it is missing, unknown, or gives another number of scores than one.
    """
    folder, size = checkpoint.folder, int(config.get_text_config().hidden_size)
    names = _beside(checkpoint, config) - {"lm_head.weight"}
    if not names:
        raise ValueError(
            f"{str(folder)!r} ({architecture}) holds no head: there is no score.weight beside its "
            "backbone, and transformers would draw one at random. Fetch the trained checkpoint; if "
            "it was trained with LoRA, save the head with it (modules_to_save=['score'])"
        )
    stem = next((stem for stem in LINEAR_NAMES if f"{stem}.weight" in names), "")
    if stem and names <= {f"{stem}.weight", f"{stem}.bias"}:
        # OpenRLHF's class has no labels, and its configuration does not speak of any.
        if architecture != OPENRLHF and config.num_labels != 1:
            raise ValueError(
                f"{str(folder / 'config.json')!r} has num_labels {config.num_labels} (2 where it "
                "does not say), and a reward model has 1: mend the file "
                f'("num_labels": 1) if {stem}.weight {list(checkpoint.shapes[f"{stem}.weight"])} '
                "is one score, or name another model if it is a classifier"
            )
        return _filled(
            checkpoint, nn.Linear(size, 1, f"{stem}.bias" in names), f"{stem}.", "linear"
        )
    if names == TWO_LAYER_NAMES and architecture in TWO_LAYER:
        width = checkpoint.shapes["score.0.weight"][0]
        layers = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 1))
        return _filled(checkpoint, layers, "score.", "two-layer")
    raise ValueError(
        f"{str(folder)!r} ({architecture}) has a head that is not known: {few(sorted(names))}. "
        "Known are score or value_head (one layer), and score.0 and score.2 of "
        f"{' and '.join(TWO_LAYER)}"
    )


def load_remote(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> HeadModel:
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
    classifier = load_whole(loader, folder, fields, trust_remote_code=True).eval().to(device())
    if not isinstance(head := getattr(classifier, "score", None), nn.Module):
        raise ValueError(
            f"{type(classifier).__name__} in {str(folder)!r} has no head named 'score', so its "
            "scores cannot be computed here"
        )
    # A copy: the classifier computes its own scores below as it was loaded.
    model = HeadModel(make_backbone(folder.name, classifier.base_model, tokenizer), deepcopy(head))
    trees = probe_trees(model.backbone.renderer)
    rows = [tree.shared + branch.tokens for tree in trees for branch in tree.branches]
    own_R, score_R = last_logits(classifier, rows), model.score_trees(trees)
    bound = 1e-3 if model.backbone.decoder.dtype == torch.float32 else 0.05
    if not (own_R - score_R).abs().max() <= bound * score_R.std():
        raise ValueError(
            f"{type(classifier).__name__} in {str(folder)!r} scores otherwise than by its 'score' "
            f"at the last token: {own_R[0]:.4g} where that gives {score_R[0]:.4g}. It does not load"
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
    return torch.stack([found.float().reshape(-1)[-1].cpu() for found in logits])


def _is_known(architecture: str) -> bool:
    """Returns whether it is known how a class computes its scores."""
    import transformers

    if architecture == OPENRLHF or architecture in TWO_LAYER:
        return True
    own = architecture.endswith((CLASSIFIER, "ForCausalLM"))
    return own and hasattr(transformers, architecture)


def _mapped(fields: Mapping[str, Any]) -> bool:
    return "AutoModelForSequenceClassification" in (fields.get("auto_map") or {})


def _unknown(checkpoint: Checkpoint, architecture: str, fields: Mapping[str, Any]) -> str:
    """Says what a layout that does not load is."""
    beside = sorted(n for n in checkpoint.shapes if not n.startswith(("model.", "transformer.")))
    code = (
        " It brings code of its own as a sequence classifier: trust_remote_code=True runs that"
        if _mapped(fields)
        else ""
    )
    return (
        f"{str(checkpoint.folder)!r} is in no layout that loads here: architecture "
        f"{architecture!r} of model type {fields.get('model_type')!r}, with tensors beside the "
        f"backbone {few(beside) or 'none'}. Known are ArmoRM's layout, transformers' "
        f"*{CLASSIFIER} with one label, OpenRLHF's {OPENRLHF}, {', '.join(TWO_LAYER)}, and "
        f"language models that answer A or B.{code}"
    )


def _beside(checkpoint: Checkpoint, config: Any) -> set[str]:
    """Returns the tensors that are no part of the backbone."""
    from transformers import MODEL_MAPPING

    prefix = cast(Any, MODEL_MAPPING[type(config)]).base_model_prefix + "."
    return {name for name in checkpoint.shapes if not name.startswith(prefix)}


def _filled(checkpoint: Checkpoint, head: nn.Module, prefix: str, kind: str) -> nn.Module:
    """Fills a head from the tensors under a prefix, whose shapes must fit."""
    shapes = {prefix + name: tuple(value.shape) for name, value in head.state_dict().items()}
    checkpoint.check(shapes, f"a {kind} head with one score")
    head.load_state_dict({name: checkpoint.read(prefix + name) for name in head.state_dict()})
    return head
