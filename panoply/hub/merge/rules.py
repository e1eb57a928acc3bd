"""Rules of merging: one tensor of each of several models of one base becomes one tensor.

    linear   sum_i w_i theta_i                              weight averages; DogeRM, WARM
    slerp    (sin((1 - t) o) a + sin(t o) b) / sin o        o the angle between a and b
    task     theta_1 + sum_{i > 1} w_i tau_i                tau_i = theta_i - theta_base
    ties     theta_base + sum_{i in A} w_i tau_i / sum_{i in A} w_i
    dare     theta_base + sum_i w_i m_i tau_i / p           m_i ~ Bernoulli(p)

A model without weight is left out, and what is left alone stays bit by bit what it is: without any
share of the others every rule gives the first model. All is computed in float32 and stored as the
first model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from panoply.config.merge import MergeRule

NEARLY_PARALLEL = 0.9995
"""Cosine from which an arc is a line, and its formula a division of rounding errors."""


def merge_tensors(
    rule: MergeRule,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None = None,
    density: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Returns one tensor of several models, in the dtype of the first.

    Args:
        rule: see the table above.
        tensors: of the models, all of one shape; the first is the reward model's.
        weights: of the models, as `weights_of` gives them.
        base: of the model that all were trained from, for the rules that need it.
        density: share of the changes that are kept, p.
        seed: of the changes that dare keeps; another one for each tensor.
    """
    weighed = [(t, w) for t, w in zip(tensors, weights, strict=True) if w]
    if len(weighed) == 1:
        return weighed[0][0].to(tensors[0].dtype)
    values = [tensor.float() for tensor, _ in weighed]
    shares = [weight for _, weight in weighed]
    origin = values[0] if base is None else base.float()
    match rule:
        case "linear":
            merged = linear(values, shares)
        case "slerp":
            merged = slerp(values[0], values[1], shares[1])
        case "task":
            merged = task_arithmetic(values, shares, origin)
        case "ties":
            merged = ties(values, shares, origin, density)
        case "dare":
            merged = dare(values, shares, origin, density, torch.Generator().manual_seed(seed))
        case _:
            assert_never(rule)
    return merged.to(tensors[0].dtype)


def weights_of(rule: MergeRule, share: float, num_models: int) -> list[float]:
    """Returns the weight of each model: the first has what the others leave, who are alike.

    The first keeps all of its own where changes are added to it (task).

    Args:
        rule: of merging.
        share: of the models behind the first, together; lambda of DogeRM (arXiv 2407.01470).
        num_models: with the first.
    """
    num_others = num_models - 1
    return [1.0 if rule == "task" else 1 - share, *[share / num_others] * num_others]


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted sum of the models: sum_i w_i theta_i.

    DogeRM's (arXiv 2407.01470) has two weights, 1 - lambda and lambda; weight-averaged reward
    models (WARM, arXiv 2401.12187) have equal ones.
    """
    merged = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        merged.add_(tensor, alpha=weight)
    return merged


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Returns the point at a share of the arc from one tensor to another.

        sin((1 - t) o) / sin(o) a + sin(t o) / sin(o) b,   cos(o) = a . b / (|a| |b|)

    Where the two are nearly parallel, or one is 0, it is the line between them, as in mergekit.
    """
    norms = first.norm() * second.norm()
    cosine = float((first.flatten() @ second.flatten()) / norms) if norms else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return linear((first, second), (1 - share, share))
    angle = math.acos(cosine)
    weights = (math.sin((1 - share) * angle), math.sin(share * angle))
    return linear((first, second), weights) / math.sin(angle)


def task_arithmetic(tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor) -> Tensor:
    """Returns the first model with what the others changed added (arXiv 2212.04089).

    theta_1 + sum_{i > 1} w_i (theta_i - theta_base)
    """
    merged = tensors[0].clone()
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        merged.add_(tensor - base, alpha=weight)
    return merged


def ties(
    tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor, density: float
) -> Tensor:
    """Returns the base with the changes whose signs agree (TIES, arXiv 2306.01708).

        trim    tau_i keeps its largest changes, a share `density` of them, and is 0 elsewhere
        elect   gamma = sign( sum_i w_i tau_i )
        merge   sum_{i in A} w_i tau_i / sum_{i in A} w_i,   A = {i: sign(tau_i) = gamma}

    A number that no model changed is the base's.
    """
    changes = [trimmed(tensor - base, density) for tensor in tensors]
    elected = linear(changes, weights).sign()
    total, weight_sum = torch.zeros_like(base), torch.zeros_like(base)
    for change, weight in zip(changes, weights, strict=True):
        agrees = (change.sign() == elected) & (change != 0)
        total.add_(change * agrees, alpha=weight)
        weight_sum.add_(agrees, alpha=weight)
    return base + torch.where(weight_sum > 0, total / weight_sum, 0.0)


def trimmed(change: Tensor, density: float) -> Tensor:
    """Returns the largest numbers of a change by magnitude, a share `density`, and 0 elsewhere.

    Numbers as large as the smallest of them stay too.
    """
    sizes = change.abs().flatten()
    num_dropped = len(sizes) - math.ceil(density * len(sizes))
    if not num_dropped:
        return change
    least = sizes.kthvalue(num_dropped + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def dare(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    density: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns the base with changes that are dropped at random (DARE, arXiv 2311.03099).

    theta_base + sum_i w_i m_i tau_i / p,   m_i ~ Bernoulli(p),   p the density

    What is kept is divided by p, so that the expectation is that of the changes.
    """
    merged = base.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        kept = torch.rand(base.shape, generator=generator) < density
        merged.add_((tensor - base) * kept, alpha=weight / density)
    return merged
