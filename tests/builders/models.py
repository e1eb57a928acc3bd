"""Small random models as folders: gated, scalar, published and pairwise."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from panoply.config import Rendering
from panoply.config.armorm import GateConfig
from panoply.hub.artefact.gated import GatedModel, save_gated_model
from panoply.hub.artefact.manifest import Manifest, ScalarManifest
from panoply.hub.artefact.scalar import load_scalar_model, save_scalar_model
from panoply.hub.backbone.backbone import Backbone
from panoply.hub.backbone.renderer import Renderer
from panoply.model.gate import make_gate
from panoply.model.reward_model import GatedHead
from tests.builders.tokenizers import chat_tokenizer

SIZE, DEPTH = 32, 2

PROMPT = [{"role": "user", "content": "How do I boil an egg?"}]

RESPONSES = ["Ten minutes.", "No.", "", "Put it into boiling water, and wait for a while."]

GATE = GateConfig(hidden_size=4)

STEP_END = "<extra_0>"
"""Token behind each step of a response that a process reward model reads."""

METRICS = {
    "objectives": {"editors-concise": {"spearman": 0.51, "n": 118.0}},
    "pairs": {
        name: {
            "log_loss": 0.6,
            "ece": None,
            "macro": {
                "accuracy": accuracy,
                "accuracy_length_balanced": 0.58,
                "ci95_length_balanced": [0.5, 0.7],
            },
        }
        for name, accuracy in (("gate", 0.7), ("linear_bt", 0.6123))
    },
}


def tiny_llama(**changes):
    """The configuration of a small Llama; wide initial weights, so that attention moves states."""
    return LlamaConfig(
        vocab_size=300,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **changes,
    )


def save_tiny_model(folder, tokenizer):
    """Saves a language model of three layers with its tokenizer, for backbones with any head."""
    torch.manual_seed(0)
    backbone = LlamaModel(tiny_llama())
    model = LlamaForCausalLM(tiny_llama())
    model.model.load_state_dict(backbone.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_policy(folder, tokenizer):
    """Saves a language model of three layers with its tokenizer."""
    torch.manual_seed(1)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(tiny_llama(tie_word_embeddings=True, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_model(family="llama", dtype=torch.float32):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family,
        vocab_size=270,
        hidden_size=SIZE,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return AutoModel.from_config(config, dtype=dtype)


def small_backbone(tokenizer, family="llama", dtype="float32", **rendering):
    model = small_model(family, getattr(torch, dtype))
    return Backbone("a/b", model, Renderer(tokenizer, Rendering(**rendering)), [DEPTH])


def make_run(out, tokenizer, *, family="llama", pooling="last", dtype="float32", **rendering):
    """A run's OUT/model around a random backbone cut to two layers; returns it with its head."""
    backbone = small_backbone(tokenizer, family, dtype, **rendering)
    renderer = backbone.renderer
    names = ("editors-concise", "preference|east")
    manifest = Manifest(
        objectives=names,
        maps={names[0]: {"low": 1, "high": 10, "bin_centers": False}},
        pooling=pooling,
        rendering=renderer.rendering,
        gate=GATE,
        temperature=0.5,
        seed=3,
        template_hash=renderer.template_hash,
        bos=tuple(renderer.bos),
        backbone="a/b",
        weights_hash=backbone.weights_hash,
        depth=DEPTH,
        dtype=dtype,
        data={
            "ratings": {"id": "r" * 8, "rows": 4800, "by_source": {"editors": 4800}},
            "pairs": {"id": "p" * 8, "rows": 3600, "by_source": {"east": 2600, "west": 1000}},
        },
    )
    weight = torch.randn(SIZE, dtype=torch.float64)
    head = GatedHead(len(names), SIZE, make_gate(SIZE, len(names), GATE))
    head.weight.normal_()
    head.unit.fill_(1.5)
    head.penalty.fill_(0.1)
    head.length_weight.normal_()
    baselines = {"linear_bt": weight, "scale.linear_bt": torch.tensor(1.25)}
    save_gated_model(GatedModel(backbone, head, manifest), out / "model", baselines, ["0" * 32])
    (out / "metrics.json").write_text(json.dumps(METRICS))
    return out / "model", weight


def small_decoder(family="llama", dtype=torch.float32, seed=1, **changes):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 270,
        "hidden_size": SIZE,
        "intermediate_size": 48,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return AutoModel.from_config(AutoConfig.for_model(family, **shape | changes), dtype=dtype)


@torch.no_grad()
def fine_tuned(model, seed, size=0.1):
    """A model after training, as far as its weights tell: each moves by a tenth of its spread."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        spread = tensor.std() if tensor.ndim > 1 else tensor.abs().mean()
        tensor.add_(size * spread * torch.randn(tensor.shape, generator=generator))
    return model


@torch.no_grad()
def save_domain_policy(folder, tokenizer, *, seed=7, rows=None, **changes):
    """A policy of three layers, fine-tuned from `small_decoder`'s weights, with its tokenizer.

    `rows` are the tokens of the base in the order that the policy's tokenizer has them.
    """
    base = fine_tuned(small_decoder(), seed)
    fields = base.config.to_dict() | {"num_hidden_layers": DEPTH + 1, **changes}
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    state = {name: tensor for name, tensor in base.state_dict().items() if "embed" not in name}
    policy.model.load_state_dict(state, strict=False)
    embedding = base.get_input_embeddings().weight
    places = torch.arange(len(embedding)) if rows is None else torch.tensor(rows)
    policy.get_input_embeddings().weight[: len(places)] = embedding[places]
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_card(num_heads=1, **changes):
    fields = {
        "rendering": Rendering(),
        "temperature": 2.0,
        "seed": 3,
        "template_hash": "",
        "bos": (),
        "backbone": "a/b",
        "depth": DEPTH,
        "dtype": "float32",
        "sources": ("east", "west"),
        "data": {"pairs": {"id": "p" * 8, "rows": 30, "by_source": {"east": 20, "west": 10}}},
        "method": {"loss": "bradley_terry", "weights": {"east": 0.5, "west": 0.5}},
        "centers": tuple(0.3 + k for k in range(num_heads)),
        "scales": tuple(1.5 + k for k in range(num_heads)),
    }
    return ScalarManifest(**fields | changes)


def save_small(folder, tokenizer, *, num_heads=1, head_seed=2, model=None, seen=(), **changes):
    """A random scalar model as a folder; returns its heads."""
    torch.manual_seed(head_seed)
    heads_KD = torch.randn(num_heads, SIZE)
    model = model or small_decoder()
    renderer = Renderer(tokenizer, Rendering())
    save_scalar_model(model, renderer, heads_KD, small_card(num_heads, **changes), folder, seen)
    return heads_KD


def save_each_kind(root, tokenizer):
    """Saves a scalar model, an ensemble of two heads and a gated model; returns their folders."""
    save_small(root / "scalar", tokenizer)
    save_small(root / "ensemble", tokenizer, num_heads=2)
    gated, _ = make_run(root / "run", tokenizer)
    return {"scalar": root / "scalar", "ensemble": root / "ensemble", "gated": gated}


def small_classifier(family="llama", **changes):
    torch.manual_seed(3)
    shape = {
        "vocab_size": 270,
        "hidden_size": SIZE,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "num_labels": 1,
    }
    if family == "gemma2":
        shape["head_dim"] = 8
    config = AutoConfig.for_model(family, **shape | changes)
    return AutoModelForSequenceClassification.from_config(config)


def publish(folder, tokenizer, model=None, *, fields=None, tensors=None):
    """Writes a classifier's folder; `fields` of its configuration and its tensors may be changed.

    A field or tensor that is None is left out.
    """
    (model or small_classifier()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = json.loads((folder / "config.json").read_text()) | (fields or {})
    kept = {name: value for name, value in found.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    if tensors:
        held = load_file(folder / "model.safetensors") | tensors
        held = {name: value for name, value in held.items() if value is not None}
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def publish_process(folder, *, two_layers=True, **changes):
    """A small process reward model in Qwen's layout, or as a token classifier with one layer."""
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": [STEP_END]})
    torch.manual_seed(5)
    tensors = {"score.weight": torch.randn(2, SIZE) / 4, "score.bias": torch.zeros(2)}
    fields = {"architectures": ["LlamaForTokenClassification"]}
    if two_layers:
        tensors = {
            "score.weight": None,
            "score.0.weight": torch.randn(SIZE, SIZE) / 4,
            "score.0.bias": torch.randn(SIZE),
            "score.2.weight": torch.randn(2, SIZE) / 4,
            "score.2.bias": torch.zeros(2),
        }
        fields = {"architectures": ["Qwen2ForProcessRewardModel"]}
    fields |= {"pad_token_id": tokenizer.pad_token_id, **changes}
    shape = {"num_labels": 2, "max_position_embeddings": 2048}
    model = small_classifier("qwen2" if two_layers else "llama", **shape)
    return publish(folder, tokenizer, model, fields=fields, tensors=tensors)


def make_pairwise(folder, tokenizer, *, answers=True, **changes):
    """A small language model that says A or B, which depends on what it reads."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": 270,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    config = AutoConfig.for_model(changes.pop("family", "llama"), **fields | changes)
    model = AutoModelForCausalLM.from_config(config)
    if answers:
        # One dimension of the residual stream is the same for all tokens, and asks for A or B.
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 8.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
            model.lm_head.weight[:, 0] = -3.0
            labels = [tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "AB"]
            model.lm_head.weight[labels, 0] = 3.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chats():
    return [[*PROMPT, {"role": "assistant", "content": response}] for response in RESPONSES]


@torch.no_grad()
def scores_by_transformers(folder, batches):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.dtype == torch.float32
    scores = []
    for batch in batches:
        inputs = tokenizer.apply_chat_template(
            batch, padding=True, return_dict=True, return_tensors="pt"
        )
        scores += model(**inputs).logits[:, 0].tolist()
    return scores


def assert_the_same_everywhere(folder):
    wanted = load_scalar_model(folder).score(PROMPT, RESPONSES)
    assert wanted.dtype == np.float32
    alone = scores_by_transformers(folder, [[chat] for chat in chats()])
    batched = scores_by_transformers(folder, [chats()])
    assert alone == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert batched == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert np.ptp(wanted) > 0.1
