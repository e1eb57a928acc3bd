"""Whether all ways to compute on a GPU give the same numbers.

FlexAttention beside several calls, layer by layer; features and gradients of a whole model beside
those of separate sequences; and what bfloat16 costs below float32 heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_rivals import plain_step
from benchmarks.gpu_setting import SIZES, Setting, num_compilations, within
from benchmarks.gpu_training import all_gradients, trained
from benchmarks.tree_baselines import separate
from panoply.model.attention import make_plan, tree_attention
from panoply.model.decoder import Decoder, Kernel
from panoply.model.flex import flex_tree_attention, make_flex_plan, pad_flex_row
from panoply.model.forward import Features, encode, encode_plain
from panoply.model.layout import TreeLayout, to_layout
from panoply.model.reward_net import RewardNet
from panoply.model.tree import TokenTree
from panoply.preference.step import PairTree, compute_gradients

Figures = Iterator[tuple[str, dict[str, Any]]]
ATTENTION = 1e-4
"""Largest relative error of one layer in float32."""
MODEL = 1e-3
"""Largest relative error of features and gradients in float32: errors of all layers add up."""
DRIFT = 2.0
"""Most that trees may drift in bfloat16, in the drift of separate sequences in bfloat16."""
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"window": 100},
    "cap": {"softcap": 30.0},
    "window_cap_scale": {"window": 60, "softcap": 20.0, "scale": 0.2},
}


def exactness(setting: Setting) -> Figures:
    """Yields errors; every one has a bound."""
    trees = [*setting.pairs(16), *setting.samples()[:1]]
    yield from of_layers(setting, to_layout(trees))
    yield from of_features(setting, trees)
    yield from of_gradients(setting, setting.pairs(12))
    yield "compilations_of_exactness", {"value": num_compilations(), "unit": ""}


def of_layers(setting: Setting, layout: TreeLayout) -> Figures:
    """Yields the errors of FlexAttention beside several calls, forward and, on a GPU, backward."""
    padded, shape = pad_flex_row(layout), SIZES[setting.sizes[0]]
    heads = (shape["num_attention_heads"], *2 * (shape["num_key_value_heads"],))
    draw = torch.Generator().manual_seed(0)
    size = len(padded.tokens_T), shape["head_dim"]
    query, key, value = rows = [
        torch.randn(1, n, *size, generator=draw).to(setting.device) for n in heads
    ]
    upstream = torch.randn(1, size[0], heads[0], size[1], generator=draw).to(setting.device)
    for row in rows:
        row.requires_grad_(not setting.tiny)  # torch has no gradient of FlexAttention on a CPU
    for kind, options in KINDS.items():
        plan = make_flex_plan(padded, setting.device)
        one = flex_tree_attention(query, key, value, plan, **options)
        several = tree_attention(query, key, value, make_plan(padded), **options)
        yield f"flex_forward_{kind}", within(largest_error(one, several), ATTENTION)
        if not setting.tiny:
            ours = torch.autograd.grad(one, rows, upstream)
            theirs = torch.autograd.grad(several, rows, upstream)
            worst = max(largest_error(a, b) for a, b in zip(ours, theirs, strict=True))
            yield f"flex_backward_{kind}", within(worst, MODEL)


def of_features(setting: Setting, trees: Sequence[TokenTree]) -> Figures:
    """Yields the errors of a whole model in float32, and its drift in bfloat16."""
    decoder = setting.decoder(setting.sizes[0], torch.float32)
    plain = encode_plain(decoder, trees, batch_size=1)
    kernels: tuple[Kernel, ...] = ("flex", "calls")
    for kernel in kernels:
        decoder.kernel = kernel
        trees_float = encode(decoder, trees, budget=setting.budget)
        yield f"features_by_{kernel}", within(largest_difference(trees_float, plain), MODEL)
    yield "score_drift_in_bfloat16", drift(setting, decoder, trees, plain)


def drift(
    setting: Setting, decoder: Decoder, trees: Sequence[TokenTree], exact: Features
) -> dict[str, Any]:
    """Returns how far bfloat16 below a float32 head moves scores, by trees and by sequences.

    The value is the drift of trees over that of sequences, both in deviations of the scores.
    """
    head_D = setting.head(setting.sizes[0]).cpu()

    def scores(features: Features) -> Tensor:
        return features.last_RLD[:, -1] @ head_D

    # Made in its dtype and not cast to it: a cast would also round the rotary frequencies.
    model = setting.model(setting.sizes[0], torch.bfloat16)
    model.load_state_dict(decoder.model.state_dict())
    model.set_attn_implementation(decoder.config._attn_implementation)
    half = Decoder(model, decoder.depths)
    half.attends_by_trees, half.kernel = True, setting.kernel
    exact_R = scores(exact)
    drifts = [
        float((scores(rough) - exact_R).square().mean().sqrt() / exact_R.std())
        for rough in (
            encode(half, trees, budget=setting.budget),
            encode_plain(half, trees, batch_size=1),
        )
    ]
    return within(drifts[0] / drifts[1], DRIFT, of_trees=drifts[0], of_sequences=drifts[1])


def of_gradients(setting: Setting, trees: Sequence[TokenTree]) -> Figures:
    """Yields the errors of the gradients of Bradley-Terry in float32, of the lowest layers."""
    decoder, head = trained(setting, setting.sizes[0], torch.float32, num_layers=3)
    plain_step(decoder, head, [separate([tree]) for tree in trees], 1)
    exact = all_gradients(decoder.model, head)
    kernels: tuple[Kernel, ...] = ("calls",) if setting.tiny else ("flex", "calls")
    for kernel in kernels:
        decoder.kernel = kernel
        gradients = gradients_of_step(decoder, head, trees, setting.budget)
        error = float((gradients - exact).norm() / exact.norm())
        yield f"gradients_by_{kernel}", within(error, MODEL)


def gradients_of_step(
    decoder: Decoder, head: nn.Linear, trees: Sequence[TokenTree], budget: int
) -> Tensor:
    """Returns the gradients of a step by trees as one vector."""
    compute_gradients(RewardNet(decoder, head), [PairTree(tree) for tree in trees], budget=budget)
    return all_gradients(decoder.model, head)


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest difference over the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def largest_difference(ours: Features, theirs: Features) -> float:
    """Returns the largest relative difference between the states of two ways."""
    pairs = (
        (ours.gate_GLD, theirs.gate_GLD),
        (ours.last_RLD, theirs.last_RLD),
        (ours.mean_RLD, theirs.mean_RLD),
    )
    return max(float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max()) for a, b in pairs)
