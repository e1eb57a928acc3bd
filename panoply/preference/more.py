"""MORE's weights of the sources in a step (arXiv 2312.07401, algorithm 1).

    g_i = grad of L_i with respect to the head,   m_i <- (1 - a) m_i + a g_i
    lambda = argmin over the simplex || sum_i lambda_i normalized(m_i) ||^2
    L = sum_i lambda_i L_i

Pure functions on a small state; one process or many, whoever sums the gradients before.

Legend: `P` pairs, `K` sources, `D` numbers of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoply.config.preference import Normalizer, WeightingConfig
from panoply.preference.min_norm import min_norm
from panoply.types import Array


@dataclass(frozen=True, slots=True)
class MoreState:
    """What MORE remembers from step to step."""

    momentum_KD: Array | None
    """m: running means of the sources' gradients; None before the first step."""
    weights_K: Array
    """lambda of the latest step; at first 1 / K."""

    @classmethod
    def begin(cls, num_sources: int) -> MoreState:
        """Returns the state before the first step."""
        return cls(None, np.full(num_sources, 1 / num_sources))


def weigh(state: MoreState, grad_KD: Array, loss_K: Array, config: WeightingConfig) -> MoreState:
    """Returns the state after a step: lambda from the gradients of all workers.

    The running mean starts at the first gradient, not at a random or zero vector. With `K = 1`
    lambda is 1.

    Args:
        state: before the step.
        grad_KD: `[K, D]` gradient of each source's mean loss with respect to the head.
        loss_K: `[K]` mean loss of each source.
        config: normalizer, momentum a, interpolation rho.
    """
    a, before = config.momentum, state.momentum_KD
    momentum_KD = grad_KD if before is None else (1 - a) * before + a * grad_KD
    scaled_KD = normalized(momentum_KD, loss_K, config.normalizer)
    rho, size = config.interpolation, len(loss_K)
    return MoreState(momentum_KD, (1 - rho) / size + rho * min_norm(scaled_KD @ scaled_KD.T))


def normalized(grad_KD: Array, loss_K: Array, how: Normalizer) -> Array:
    """Returns the gradients as the minimum norm sees them.

    none: g;   l2: g / ||g||;   loss: g sum_j (L_j + 1) / (L_i + 1);   loss+: g / (||g|| L_i)

    A source without gradient keeps it: it is the point of least norm, whatever its scale.
    """
    norm_K = np.linalg.norm(grad_KD, axis=1)
    norm_K = np.where(norm_K > 0, norm_K, 1.0)
    if how == "none":
        return grad_KD
    if how == "l2":
        return grad_KD / norm_K[:, None]
    if how == "loss":
        return grad_KD * ((loss_K + 1).sum() / (loss_K + 1))[:, None]
    return grad_KD / (norm_K * np.maximum(loss_K, np.finfo(float).tiny))[:, None]
