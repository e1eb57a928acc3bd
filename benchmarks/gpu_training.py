"""A step of training on a GPU: ours by trees, and a plain loop on padded pairs as TRL runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_rivals import plain_step
from benchmarks.gpu_setting import Setting, Size, num_compilations, times_faster
from benchmarks.tree_baselines import separate
from panoply.model.decoder import Decoder
from panoply.model.reward_net import RewardNet
from panoply.model.tree import TokenTree
from panoply.preference.step import PairTree, compute_gradients

LEARNING_RATE = 1e-6
PAIRS_PER_BATCH = 8
"""Pairs of a padded batch of the plain loop."""


def training(setting: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the figures of a whole step of a small model, and of the gradients of a large one."""
    trees = setting.pairs(32)
    yield f"step_{setting.sizes[0]}_vs_plain_loop", whole_step(setting, trees)
    setting.release()
    if not setting.tiny:
        yield "gradients_8B_vs_plain_loop", large_gradients(setting, trees)
    yield "compilations_of_training", {"value": num_compilations(), "unit": ""}


def whole_step(setting: Setting, trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Returns the figure of AdamW on all weights, in float32 under autocast."""
    decoder, head = trained(setting, setting.sizes[0], torch.float32)
    parameters = [*decoder.model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, fused=True)

    def step(gradients: Callable[[], Any]) -> None:
        enabled = setting.dtype != torch.float32
        with torch.autocast(setting.device.type, setting.dtype, enabled=enabled):
            gradients()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    ways = gradients_of(setting, decoder, head, trees)
    return compared(setting, {name: partial(step, way) for name, way in ways.items()}, trees)


def large_gradients(setting: Setting, trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Returns the figure of gradients without an optimizer, in bfloat16 with layers recomputed.

    Its two numbers a weight would not fit: those of 8B in float32 are 64 GB.
    """
    decoder, head = trained(setting, "8B", setting.dtype)
    model: Any = decoder.model
    model.activation_checkpointing_enable({"use_reentrant": False})
    return compared(setting, gradients_of(setting, decoder, head, trees), trees)


def trained(
    setting: Setting, size: Size, dtype: torch.dtype, num_layers: int = 0
) -> tuple[Decoder, nn.Linear]:
    """Returns a model in training mode, and its head; 0 layers: all."""
    decoder = setting.decoder(size, dtype, num_layers, trainable=True)
    decoder.model.train()
    decoder.kernel = setting.kernel
    head = nn.Linear(decoder.hidden_size, 1, bias=False, device=setting.device)
    return decoder, head


def gradients_of(
    setting: Setting, decoder: Decoder, head: nn.Linear, trees: Sequence[TokenTree]
) -> dict[str, Callable[[], Any]]:
    """Returns our way and the plain way to the gradients of one step."""
    net, items = RewardNet(decoder, head), [PairTree(tree) for tree in trees]
    pairs = [separate([tree]) for tree in trees]
    return {
        "ours": lambda: compute_gradients(net, items, budget=setting.budget),
        "plain": lambda: plain_step(decoder, head, pairs, PAIRS_PER_BATCH),
    }


def compared(
    setting: Setting, runs: Mapping[str, Callable[[], Any]], trees: Sequence[TokenTree]
) -> dict[str, Any]:
    """Returns the figure of a step beside the plain one, with the peak memory of both."""
    times = setting.seconds(runs)
    num_separate = sum(tree.num_separate_tokens for tree in trees)
    return times_faster(
        times["plain"],
        times["ours"],
        ideal=num_separate / sum(tree.num_tokens for tree in trees),
        tokens_per_second=num_separate / min(times["ours"]),
        gibibytes=setting.gibibytes(runs["ours"]),
        their_gibibytes=setting.gibibytes(runs["plain"]),
    )


def all_gradients(*modules: nn.Module) -> Tensor:
    """Returns the gradients of modules as one vector."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.cat([p.grad.flatten().float() for p in parameters if p.grad is not None])
