"""Export of a cut decoder with one linear head as a Hugging Face sequence classifier.

One weight per feature of the last token is what transformers calls a sequence classifier with one
label, with these rules made explicit:

* Score position: transformers takes the last token that is not the pad token. The pad token is
  new, so no text renders to it unless it spells it out, and the last token of a render is the last
  one kept.
* Beginning of sequence: where the tokenizer writes it and the template does not, the saved template
  does, so that `apply_chat_template` alone gives what was scored in training.
* Precision: weights are float32, since logits take the dtype of the model and bfloat16 logits tie.

Legend: `R` responses, `D` hidden size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.loading import load_model, load_tokenizer
from panoply.hub.example_conversations import example_chat_ids
from panoply.model.device import best_device
from panoply.types import Array

PAD = "<|panoply_pad|>"
PAD_PATTERN = r"<\|panoply_pad_*\|>"
"""PAD, or a longer name of it where a vocabulary already held that."""
TOLERANCE = 1e-3


def check_vacant(out: Path) -> None:
    """Checks that a folder may be written.

    Raises:
        ValueError: it holds something.
    """
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not is_empty:
        raise ValueError(f"`out` is {str(out)!r}, which holds something; name a new folder")


@torch.no_grad()
def write_classifier(
    model: nn.Module, renderer: Renderer, weight_D: torch.Tensor, folder: Path
) -> Renderer:
    """Writes a sequence classifier with its tokenizer, and returns the renderer of the folder.

    Args:
        model: a decoder stack without a language-model head; it stays as it is.
        renderer: of its conversations.
        weight_D: the head.
        folder: where the files go.

    Raises:
        ValueError: transformers has no classifier for this architecture, or one of another kind.
    """
    classifier = to_classifier(model, weight_D)
    tokenizer = export_tokenizer(renderer, folder)
    # The vocabulary may end before the pad token, whose embedding is zeros.
    pad = int(tokenizer.pad_token_id)
    if pad >= classifier.get_input_embeddings().weight.shape[0]:
        classifier.resize_token_embeddings(pad + 1, mean_resizing=False)
    classifier.get_input_embeddings().weight[pad] = 0
    classifier.config.pad_token_id = pad
    classifier.save_pretrained(folder)
    return Renderer(tokenizer, renderer.rendering)


@torch.no_grad()
def to_classifier(model: nn.Module, weight_D: torch.Tensor) -> Any:
    """Returns a sequence classifier with one label: the decoder and the head, float32.

    Raises:
        ValueError: transformers has none for this architecture, or one of another kind.
    """
    from transformers import AutoModelForSequenceClassification

    # A copy, since the model's own configuration may name our attention.
    config = cast(Any, model).config
    config = type(config).from_dict(config.to_dict())
    config.num_labels = 1
    name = type(model).__name__
    try:
        classifier = cast(Any, AutoModelForSequenceClassification.from_config(config)).float()
    except ValueError as error:
        raise ValueError(
            f"transformers has no sequence classifier for {name}, so a scalar model cannot be "
            "saved for it; take a backbone of another architecture"
        ) from error
    backbone = cast(Any, getattr(classifier, classifier.base_model_prefix, None))
    head = cast(Any, getattr(classifier, "score", None))
    is_linear = isinstance(head, nn.Linear) and dict(head.named_parameters()).keys() == {"weight"}
    if not (is_linear and type(backbone) is type(model)):
        raise ValueError(
            f"{type(classifier).__name__} is no {name} with one linear head named 'score', so a "
            "scalar model cannot be saved for it; take a backbone of another architecture"
        )
    backbone.load_state_dict(model.state_dict())
    head.weight.copy_(weight_D[None])
    return classifier.eval()


def export_tokenizer(renderer: Renderer, folder: Path) -> Any:
    """Saves the tokenizer with a pad token of its own and a template that writes BOS; returns it.

    A pad token that an earlier save added stays.
    """
    renderer.tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    if not re.fullmatch(PAD_PATTERN, tokenizer.pad_token or ""):
        pad = PAD
        while pad in tokenizer.get_vocab():
            pad = pad.replace("|>", "_|>")
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.padding_side = "right"
    if renderer.bos and example_chat_ids(tokenizer)[0][:1] != renderer.bos:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.inference_mode()
def check_drift(score_R: torch.Tensor, folder: Path) -> float:
    """Loads a classifier and returns its largest drift, alone and in a padded batch.

    Args:
        score_R: float32 scores of `example_trees`, from elsewhere.
        folder: of the classifier.

    Returns:
        The largest difference over the deviation of the scores.

    Raises:
        RuntimeError: the drift is beyond TOLERANCE.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder)
    classifier = load_model(AutoModelForSequenceClassification, folder, dtype=torch.float32)
    classifier = classifier.eval().to(best_device())
    rows = example_chat_ids(tokenizer)
    alone_R = np.concatenate([_logits(classifier, tokenizer, [row]) for row in rows])
    batched_R = _logits(classifier, tokenizer, rows)
    expected_R = score_R.double().cpu().numpy()
    difference = np.abs(np.stack([alone_R, batched_R]) - expected_R).max()
    drift = float(difference / expected_R.std())
    if not drift <= TOLERANCE:
        raise RuntimeError(
            f"the saved classifier differs from the model's own scores by {drift:.2e} of their "
            f"deviation (allowed {TOLERANCE:g}): nothing was saved; report this"
        )
    return drift


def _logits(classifier: Any, tokenizer: Any, rows: list[list[int]]) -> Array:
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(classifier.device)
    return classifier(**inputs).logits[:, 0].double().cpu().numpy()
