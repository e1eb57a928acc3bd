"""Scalar heads out of a run, for everyone who loads `AutoModelForSequenceClassification`.

The compared head `linear_bt` is one weight per feature. On features of the last token it is what
transformers calls a sequence classifier with one label, with these rules made explicit:

* Score position: transformers takes the last token that is not the pad token. The exported pad
  token is new, so no text renders to it unless it spells it out, and the last token of a render
  is the last one kept.
* Beginning of sequence: where the tokenizer writes it and the template does not, the exported
  template does, so that `apply_chat_template` alone gives what was scored in training.
* Precision: weights are float32, since logits take the dtype of the model and bfloat16 logits tie.

Legend: `R` responses, `F` features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from panoply.data.schema import Prompt
from panoply.hub.artefact import Card, RewardModel, load_reward_model, pooled
from panoply.hub.backbone import Renderer
from panoply.hub.card import Scalar, model_card, read_metrics

SCORER = "linear_bt"
PAD = "<|panoply_pad|>"
TOLERANCE = 1e-3
PROBES: tuple[tuple[Prompt, tuple[str, ...]], ...] = (
    (
        [{"role": "user", "content": "How do I boil an egg?"}],
        ("Ten minutes.", "No.", "Put it into boiling water and wait.\n\nThen cool it."),
    ),
    (
        [
            {"role": "user", "content": "Name a prime."},
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "A larger one, please: I need it for an example."},
        ],
        ("97", "There is none larger than 7, é ∑ 数.", "101 is prime, " * 8),
    ),
)
"""Conversations whose scores are compared before an export counts."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    pad_token: str
    num_compared: int
    drift: float
    """Largest difference from the run's own scores, over their deviation."""


def export_scalar(folder: Path, out: Path) -> Exported:
    """Exports the linear Bradley-Terry head of a run's reward model.

    The export is built beside `out`, loaded again and compared; `out` appears when it is right.

    Raises:
        FileNotFoundError: the folder is no reward model of ours.
        ValueError: its features are not those of the last token, the architecture has no
            sequence classifier with a linear head, or `out` holds something.
        RuntimeError: the exported model scores differently.
    """
    _check_vacant(out)
    weight_F, scale = _read_head(folder)
    model = load_reward_model(folder)
    model.backbone.decoder.model.float()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        built = Path(scratch) / "model"
        classifier = to_classifier(model, folder, weight_F)
        tokenizer = export_tokenizer(folder, model.backbone.renderer)
        reserve_pad(classifier, int(tokenizer.pad_token_id))
        classifier.save_pretrained(built)
        tokenizer.save_pretrained(built)
        scalar = Scalar(SCORER, str(tokenizer.pad_token), scale)
        (built / "README.md").write_text(model_card(model.card, read_metrics(folder), scalar))
        drift = compare(model, weight_F, built)
        if out.is_dir():
            out.rmdir()
        built.rename(out)
    return Exported(out, scalar.pad_token, sum(len(r) for _, r in PROBES), drift)


def _check_vacant(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"`out` is {str(out)!r}, which holds something; name a new folder")


def _read_head(folder: Path) -> tuple[torch.Tensor, float]:
    """Returns the head's weights `[F]` and its factor to log odds."""
    for name in ("panoply.json", "baselines.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has no {name}, so it holds no scalar head to export. A run "
                "leaves a folder that does in OUT/model"
            )
    pooling = Card.from_json((folder / "panoply.json").read_text()).pooling
    if pooling != "last":
        raise ValueError(
            f"the head {SCORER!r} in {str(folder)!r} reads {pooling!r} features, but a sequence "
            "classifier reads 'last', the last token, alone: run again with "
            "`--backbone.poolings last` and another `--out`, and export that"
        )
    tensors = load_file(folder / "baselines.safetensors")
    return tensors[SCORER], float(tensors[f"scale.{SCORER}"])


@torch.no_grad()
def to_classifier(model: RewardModel, folder: Path, weight_F: torch.Tensor) -> Any:
    """Returns a sequence classifier with one label: the cut backbone and the head, float32.

    Raises:
        ValueError: transformers has none for this architecture, or one of another kind.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    decoder = model.backbone.decoder
    config = AutoConfig.from_pretrained(folder)  # as saved: ours may attend in another way
    config.num_labels = 1
    name = type(decoder.model).__name__
    try:
        classifier = cast(Any, AutoModelForSequenceClassification.from_config(config)).float()
    except ValueError as error:
        raise ValueError(
            f"transformers has no sequence classifier for {name}, so its head cannot be exported; "
            "the gated model in the run's folder can be used"
        ) from error
    backbone = cast(Any, getattr(classifier, classifier.base_model_prefix, None))
    head = cast(Any, getattr(classifier, "score", None))
    is_linear = isinstance(head, nn.Linear) and dict(head.named_parameters()).keys() == {"weight"}
    if not (is_linear and type(backbone) is type(decoder.model)):
        raise ValueError(
            f"{type(classifier).__name__} is no {name} with one linear head named 'score', so the "
            "head cannot be exported; the gated model in the run's folder can be used"
        )
    backbone.load_state_dict(decoder.model.state_dict())
    head.weight.copy_(weight_F[None])
    return classifier.eval()


def export_tokenizer(folder: Path, renderer: Renderer) -> Any:
    """Returns the tokenizer with a pad token of its own and a template that writes BOS."""
    from transformers import AutoTokenizer

    tokenizer = cast(Any, AutoTokenizer.from_pretrained(folder))
    pad = PAD
    while pad in tokenizer.get_vocab():
        pad = pad.replace("|>", "_|>")
    tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.padding_side = "right"
    tokenizer.chat_template = renderer.tokenizer.chat_template
    if renderer.bos and chat_ids(tokenizer, *PROBES[0])[0][:1] != renderer.bos:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


@torch.no_grad()
def reserve_pad(classifier: Any, pad_token_id: int) -> None:
    """Names the pad token, and gives it an embedding of zeros where the vocabulary ends before."""
    if pad_token_id >= classifier.get_input_embeddings().weight.shape[0]:
        classifier.resize_token_embeddings(pad_token_id + 1, mean_resizing=False)
    classifier.get_input_embeddings().weight[pad_token_id] = 0
    classifier.config.pad_token_id = pad_token_id


def chat_ids(tokenizer: Any, prompt: Prompt, responses: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of each conversation, as users of the export get them."""
    chats = [
        [*map(dict, prompt), {"role": "assistant", "content": response}] for response in responses
    ]
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]


@torch.inference_mode()
def compare(model: RewardModel, weight_F: torch.Tensor, built: Path) -> float:
    """Loads an export and returns its largest drift, alone and in a padded batch.

    Relative to the deviation of the scores; both sides compute in float32.

    Raises:
        RuntimeError: the drift is beyond TOLERANCE.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built)
    loaded = cast(Any, AutoModelForSequenceClassification.from_pretrained(built))
    loaded = loaded.eval().to(model.backbone.decoder.device)
    trees = [model.backbone.renderer.render(*probe).tree for probe in PROBES]
    features_RF = pooled(model.backbone.features(trees), "last").double()
    own = (features_RF @ weight_F.double()).numpy()
    rows = [ids for probe in PROBES for ids in chat_ids(tokenizer, *probe)]
    alone = np.concatenate([_logits(loaded, tokenizer, [row]) for row in rows])
    batched = _logits(loaded, tokenizer, rows)
    drift = float(np.abs(np.stack([alone, batched]) - own).max() / own.std())
    if not drift <= TOLERANCE:
        raise RuntimeError(
            f"the exported model differs from the run's {SCORER!r} by {drift:.2e} of the scores' "
            f"deviation (allowed {TOLERANCE:g}): nothing was exported; report this"
        )
    return drift


def _logits(classifier: Any, tokenizer: Any, rows: list[list[int]]) -> NDArray[np.float64]:
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(classifier.device)
    return classifier(**inputs).logits[:, 0].double().cpu().numpy()
