"""Prepacked linear layers: the model's features, its formula, and adapters on them."""

import math

import pytest
import torch
from torch import nn

from panoply.hub.artefact.load import load_reward_model
from panoply.hub.artefact.sharing import load_on_backbone
from panoply.model.prepacked import PrepackedGatedMLP, PrepackedLinear, prepack, unpack
from tests.builders.adapters import adapt, save_adapters
from tests.builders.models import (
    PROMPT,
    RESPONSES,
    make_pairwise,
    publish,
    save_each_kind,
    small_backbone,
)

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


class GatedMLP(nn.Module):
    """A gated MLP as decoders have it, with a factor that some of them put before its output."""

    def __init__(self, factor=1.0, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = nn.Linear(3, 4, bias=bias), nn.Linear(3, 4, bias=bias)
        self.down_proj, self.factor = nn.Linear(4, 3, bias=bias), factor
        self.requires_grad_(False)

    def forward(self, x):
        """Returns the output of inputs."""
        gated = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.factor * self.down_proj(gated)


def number_of(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_mlp_is_the_formula_of_its_docstring(bias):
    model = nn.Sequential(GatedMLP(bias=bias))
    [mlp] = model
    weights = {
        name: (part.weight.tolist(), part.bias.tolist() if bias else [0.0] * part.out_features)
        for name, part in mlp.named_children()
    }

    def linear(name, x):
        rows, shifts = weights[name]
        return [
            sum(w * value for w, value in zip(row, x, strict=True)) + shift
            for row, shift in zip(rows, shifts, strict=True)
        ]

    x = [0.5, -2.0, 1.5]
    gates = [value / (1 + math.exp(-value)) for value in linear("gate_proj", x)]
    inner = [g * u for g, u in zip(gates, linear("up_proj", x), strict=True)]
    prepack(model)
    assert isinstance(model[0], PrepackedGatedMLP)
    assert model(torch.tensor([[x]]))[0, 0].tolist() == pytest.approx(
        linear("down_proj", inner), rel=1e-5
    )


@torch.inference_mode()
def test_an_mlp_of_another_formula_is_prepacked_but_not_fused():
    model, x = nn.Sequential(GatedMLP(factor=1.01)), torch.randn(5, 3)
    expected = model(x)
    prepack(model)
    assert (number_of(model, PrepackedLinear), number_of(model, PrepackedGatedMLP)) == (3, 0)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_layers_that_are_trained_or_off_the_cpu_or_of_another_type_stay():
    trained = nn.Linear(3, 3)
    model = nn.Sequential(
        trained, nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 3, device="meta")
    )
    model[1:].requires_grad_(False)
    prepack(model)
    assert number_of(model, PrepackedLinear) == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox", "qwen3"])
def test_features_move_by_rounding_alone(tiny_tokenizer, family):
    backbone = small_backbone(tiny_tokenizer, family)
    trees = [backbone.renderer.render(PROMPT, RESPONSES).tree]
    expected = backbone.features(trees, 256)
    sizes = sum(parameter.numel() for parameter in backbone.decoder.model.parameters())
    backbone.prepack()
    assert number_of(backbone.decoder.model, PrepackedLinear) > 0
    features = backbone.features(trees, 256)
    for name in ("gate_GLD", "last_RLD", "mean_RLD"):
        torch.testing.assert_close(
            getattr(features, name), getattr(expected, name), rtol=1e-4, atol=1e-5
        )
    assert sum(parameter.numel() for parameter in backbone.decoder.model.parameters()) == sizes


def test_half_precision_stays_within_its_drift(tiny_tokenizer):
    exact = small_backbone(tiny_tokenizer)
    trees = [exact.renderer.render(PROMPT, RESPONSES).tree]
    expected = exact.features(trees, 256).last_RLD
    plain, packed = (small_backbone(tiny_tokenizer, dtype="bfloat16") for _ in range(2))
    packed.prepack()

    def drift(backbone):
        return float((backbone.features(trees, 256).last_RLD - expected).norm() / expected.norm())

    assert drift(packed) < 1.5 * drift(plain)


def test_every_kind_of_reward_model_scores_the_same(tiny_tokenizer, tmp_path):
    for folder in save_each_kind(tmp_path, tiny_tokenizer).values():
        model = load_reward_model(folder)
        expected = model.score(PROMPT, RESPONSES).tolist()
        model.prepack()
        assert model.score(PROMPT, RESPONSES).tolist() == pytest.approx(expected, rel=1e-4)
    pairwise = load_reward_model(make_pairwise(tmp_path / "pairwise", tiny_tokenizer))
    expected = pairwise.compare(PROMPT, *RESPONSES[:2])
    pairwise.prepack()
    assert pairwise.compare(PROMPT, *RESPONSES[:2]) == pytest.approx(expected, rel=1e-4)


def test_adapters_come_onto_a_prepacked_backbone_and_score_as_alone(
    tiny_tokenizer, tiny_model_folder, tmp_path
):
    base = publish(tmp_path / "base", tiny_tokenizer)
    adapt(base, tmp_path / "qv", seed=4)
    adapt(base, tmp_path / "mlp", seed=5, target_modules=["gate_proj", "up_proj", "down_proj"])
    adapt(base, tmp_path / "dora", seed=6, use_dora=True)
    save_adapters(tmp_path / "ours", tiny_model_folder, num=2, seed=3)
    save_adapters(tmp_path / "layers", tiny_model_folder, seed=4, kind="layers")

    for names in (("qv", "mlp", "dora", "qv"), ("ours", "layers"), ("layers", "ours")):
        first = load_on_backbone(str(tmp_path / names[0]), None)
        first.prepack()
        decoder = first.shared.backbone.decoder.model
        assert number_of(decoder, PrepackedLinear) > 0
        models = [first]
        for name in names[1:]:
            models.append(load_on_backbone(str(tmp_path / name), first.shared))
        for name, model in [*zip(names, models, strict=True)] * 2:
            alone = load_reward_model(tmp_path / name).score(PROMPT, RESPONSES).tolist()
            assert model.score(PROMPT, RESPONSES).tolist() == pytest.approx(
                alone, rel=1e-4, abs=3e-5
            )
        assert (number_of(decoder, PrepackedLinear) > 0) == ("dora" not in names)


def test_unpacking_gives_the_same_weights_back():
    model = nn.Sequential(GatedMLP(bias=True))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepack(model, fuses=False)
    unpack(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])
