"""Models of 8B and 70B by their shapes alone: on the meta device nothing is stored or computed."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModel, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from panoply.config.armorm import GateConfig
from panoply.hub.artefact.model_card import scalar_card
from panoply.hub.backbone.attention import NAME, attend_by_trees
from panoply.hub.backbone.pretrained import count_layers, state_size
from panoply.model.decoder import Decoder
from panoply.model.forward import forward_trees
from panoply.model.gate import make_gate
from panoply.model.reward_model import GatedHead
from panoply.model.reward_net import RewardNet
from panoply.preference.train_state import shard
from tests.builders.models import small_card
from tests.builders.token_trees import random_trees

LLAMA_3 = {"vocab_size": 128_256, "num_key_value_heads": 8}
SIZES = {
    "8B": LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": LLAMA_3
    | {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
WORKERS = 8


def num_parameters(size):
    """Weights of a Llama without its language-model head, by its layers' shapes."""
    shape = SIZES[size]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return shape["vocab_size"] * width + shape["num_hidden_layers"] * layer + width


def decoder_of(size, **options):
    """A decoder that goes by trees, without weights."""
    with torch.device("meta"):
        model = AutoModel.from_config(LlamaConfig(**SIZES[size]), dtype=torch.bfloat16)
    decoder = Decoder(model, [SIZES[size]["num_hidden_layers"]], **options)
    # There are no numbers that `attend_by_trees` could compare; it has registered the name.
    attend_by_trees(Decoder(AutoModel.from_config(LlamaConfig(**tiny())), [1]))
    model.set_attn_implementation(NAME)
    decoder.attends_by_trees = True
    return decoder


def tiny():
    return {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }


@pytest.fixture
def eight_workers():
    """The first of eight workers, whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=WORKERS, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "billions"), [("8B", 7.5), ("70B", 69.5)])
def test_a_forward_of_trees_has_the_shapes_of_the_model(size, billions):
    decoder, trees = decoder_of(size), random_trees(0, 3)
    parameters = list(decoder.model.parameters())
    assert sum(p.numel() for p in parameters) == num_parameters(size)
    assert round(num_parameters(size) / 1e9, 1) == billions
    features = forward_trees(decoder, trees)
    width, num_responses = SIZES[size]["hidden_size"], sum(len(t.branches) for t in trees)
    assert features.gate_GLD.shape == (3, 1, width)
    assert features.last_RLD.shape == features.mean_RLD.shape == (num_responses, 1, width)
    # Heads read float32 whatever the backbone computes in.
    assert (decoder.dtype, features.last_RLD.dtype) == (torch.bfloat16, torch.float32)
    assert all(p.is_meta for p in parameters)


def test_a_gated_head_on_70b_is_small_beside_its_backbone():
    width, objectives = SIZES["70B"]["hidden_size"], 19
    config = GateConfig(hidden_size=1024, num_hidden=3)
    with torch.device("meta"):
        head = GatedHead(objectives, width, make_gate(width, objectives, config))
        scored = head(torch.empty(4, width), torch.empty(4, width))
    assert scored.score_B.shape == (4,)
    assert scored.weights_BO.shape == (4, objectives)
    gate = width * 1024 + 1024 + 2 * (1024 * 1024 + 1024) + 1024 * objectives + objectives + 1
    assert sum(p.numel() for p in head.parameters()) == gate
    buffers = objectives * width + width + 1 + 4 * objectives + 2 * width
    assert sum(b.numel() for b in head.buffers()) == buffers
    assert 4 * (gate + buffers) < 1e-3 * 2 * num_parameters("70B")  # float32 beside bfloat16


def test_the_numbers_of_a_run_come_from_the_configuration_alone(tmp_path):
    config = LlamaConfig(**SIZES["70B"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert count_layers(str(tmp_path)) == 80
    assert state_size(str(tmp_path)) == 8192


def test_the_card_of_a_70b_model_names_its_backbone_and_what_a_score_costs():
    card = small_card(backbone="meta-llama/Llama-3.3-70B-Instruct", depth=80, dtype="bfloat16")
    text = scalar_card(card, {})
    assert "base_model: meta-llama/Llama-3.3-70B-Instruct" in text
    assert "cost: one forward of 80 layers" in text
    assert "trained in bfloat16, saved and scored in float32" in text


def test_8b_is_sharded_layer_by_layer_and_recomputes_its_layers(eight_workers):
    decoder = decoder_of("8B", trainable=True)
    decoder.model.float().train()
    decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    net = RewardNet(decoder, nn.Linear(4096, 1, bias=False, device="meta"))
    shard(net)
    layers = list(decoder.layers)
    assert len(layers) == 32
    assert all(isinstance(layer, FSDPModule) for layer in [*layers, net])
    assert all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)
    assert all(layer.gradient_checkpointing for layer in layers)
    assert not isinstance(net.head.weight, DTensor)
    kept = [p.to_local() for p in decoder.model.parameters() if isinstance(p, DTensor)]
    assert len(kept) == len(list(decoder.model.parameters()))
    assert sum(p.numel() for p in kept) == num_parameters("8B") // WORKERS
    # A layer is gathered while it runs: the one beside it may be on its way.
    whole = {sum(math.prod(p.shape) for p in layer.parameters()) for layer in layers}
    assert whole == {218_112_000}
