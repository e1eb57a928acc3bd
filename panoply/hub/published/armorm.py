"""Checkpoints in ArmoRM's published layout (RLHFlow/ArmoRM-Llama3-8B-v0.1), without its code.

`config.json` is that of the backbone with `num_objectives`, `gating_temperature`,
`gating_hidden_dim` and `gating_n_hidden`. The safetensors, in one file or in shards, hold

    model.*                                   the backbone
    regression_layer.weight [O, D]            W: r = W h, h at the last token
    reward_transform_matrix [O, O]            T: r' = r T
    gating.logit_scale [1]                    s
    gating.layers.{i}.{weight, bias}          the MLP of g(x) = s softmax(MLP(f(x)) / tau)

f(x) is the state at the first token behind the text of the last user turn. The published code
finds it by the token ids of Llama 3 (`<|eot_id|>` and the assistant header) or of Gemma 2; here it
is found from the chat template, whichever that is, and a response that repeats the header does
not move it.

Legend: `O` objectives, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from panoply.config.armorm import GateConfig
from panoply.data.layouts import HELPSTEER, HELPSTEER_SCALES
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.door.checkpoint import Checkpoint, Shape, few, read_fields
from panoply.hub.door.loading import load_config
from panoply.hub.published.loading import load_chat_tokenizer, load_whole, make_backbone
from panoply.model.gate import make_gate
from panoply.model.reward_model import TransformedHead

HEAD = ("regression_layer.weight", "reward_transform_matrix", "gating.logit_scale")
"""Tensors by which the layout is recognized."""
FIELDS = ("num_objectives", "gating_temperature", "gating_hidden_dim", "gating_n_hidden")
PUBLISHED = (
    *(f"helpsteer-{name}" for name in HELPSTEER),
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""The published objectives in their order; the checkpoint itself does not name them."""


def is_armorm(checkpoint: Checkpoint) -> bool:
    """Returns whether the tensors are those of ArmoRM's layout."""
    return set(HEAD) <= set(checkpoint.shapes)


def gate_layout(config: Mapping[str, Any], size: int) -> dict[str, Shape]:
    """Returns names and shapes of the head's tensors, as the configuration has them."""
    num, hidden = config["num_objectives"], config["gating_hidden_dim"]
    widths = [size] + [hidden] * config["gating_n_hidden"] + [num]
    shapes: dict[str, Shape] = dict(zip(HEAD, ((num, size), (num, num), (1,)), strict=True))
    for i, (before, after) in enumerate(pairwise(widths)):
        shapes[f"gating.layers.{i}.weight"] = (after, before)
        shapes[f"gating.layers.{i}.bias"] = (after,)
    return shapes


@dataclass(frozen=True, slots=True)
class ArmoRMParts:
    """Contents of a checkpoint: a backbone with its renderer, a head, and its objectives."""

    backbone: Backbone
    head: TransformedHead
    objectives: tuple[str, ...]
    gate: GateConfig
    scales: Mapping[str, Mapping[str, float | bool]]


def load_armorm(checkpoint: Checkpoint, max_tokens: int = 0) -> ArmoRMParts:
    """Loads a checkpoint in ArmoRM's layout.

    Args:
        checkpoint: with its tensors.
        max_tokens: most tokens of a conversation; 0: as many as the model has positions.

    Raises:
        ValueError: the configuration lacks a field of the layout, a tensor does not fit it, or
            the tokenizer has no chat template.
    """
    folder = checkpoint.folder
    fields = read_fields(folder / "config.json")
    if missing := [name for name in FIELDS if name not in fields]:
        raise ValueError(
            f"{str(folder / 'config.json')!r} lacks {', '.join(missing)}, which the gate of "
            "ArmoRM's layout is built from: add them"
        )
    config = load_config(folder)
    _check(checkpoint, config, fields)
    gate = GateConfig(
        hidden_size=fields["gating_hidden_dim"],
        num_hidden=fields["gating_n_hidden"],
        temperature=float(fields["gating_temperature"]),
        dropout=0.0,
        input_dropout=0.0,
    )
    names = objective_names(fields)
    scales = {f"helpsteer-{k}": scale.to_dict() for k, scale in HELPSTEER_SCALES.items()}
    return ArmoRMParts(
        _backbone(folder, config, fields, max_tokens),
        _head(checkpoint, len(names), int(config.hidden_size), gate),
        names,
        gate,
        {name: scale for name, scale in scales.items() if name in names},
    )


def _backbone(folder: Path, config: Any, fields: Mapping[str, Any], max_tokens: int) -> Backbone:
    """Loads the backbone, whole, and the renderer.

    Conversations beyond the positions of the backbone are cut; the published code cuts nothing.
    """
    from transformers import AutoModel

    tokenizer = load_chat_tokenizer(folder)
    # transformers itself takes `model.` as the prefix of a backbone inside a larger model.
    head = gate_layout(fields, int(config.hidden_size))
    model = load_whole(AutoModel, folder, fields, unused=head, config=config)
    return make_backbone(folder.name, model, tokenizer, max_tokens, gate="turn_end")


def objective_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the labels of the configuration; without any, the published names where 19."""
    num = int(fields["num_objectives"])
    labels = {int(i): str(name) for i, name in fields.get("id2label", {}).items()}
    if sorted(labels) == list(range(num)) and labels != {i: f"LABEL_{i}" for i in range(num)}:
        return tuple(labels[i] for i in range(num))
    return PUBLISHED if num == len(PUBLISHED) else tuple(f"objective-{i}" for i in range(num))


def _check(checkpoint: Checkpoint, config: Any, fields: Mapping[str, Any]) -> None:
    """Compares every tensor with what the configuration asks for, before anything is loaded."""
    from transformers import AutoModel

    with torch.device("meta"):
        states = AutoModel.from_config(config).state_dict()
    backbone = {f"model.{name}": tuple(tensor.shape) for name, tensor in states.items()}
    checkpoint.check(backbone, f"a {config.model_type} backbone by its config.json")
    head = gate_layout(fields, int(config.hidden_size))
    checkpoint.check(head, "a head by num_objectives, hidden_size and gating_* of its config.json")
    prefixes = ("model.", *head)
    if extra := [name for name in checkpoint.shapes if not name.startswith(prefixes)]:
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds tensors that ArmoRM's layout does not know and "
            f"that would go unused: {few(extra)}. Remove them, or mend gating_n_hidden"
        )


def _head(checkpoint: Checkpoint, num: int, size: int, config: GateConfig) -> TransformedHead:
    """Fills our head and gate; scores are float32 from here on, whatever the dtype stored."""
    head = TransformedHead(num, size, make_gate(size, num, config))
    state = {"weight": checkpoint.read(HEAD[0]), "transform": checkpoint.read(HEAD[1])}
    state |= {"unit": torch.ones(num), "gate.scale": checkpoint.read(HEAD[2])[0]}
    layers = [f"gate.layers.{i}" for i in range(config.num_hidden)] + ["gate.top"]
    for i, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            state[f"{layer}.{kind}"] = checkpoint.read(f"gating.layers.{i}.{kind}")
    # What the layout does not have stays as it was made: shifts of 0, spreads of 1.
    head.load_state_dict(head.state_dict() | state)
    return head
