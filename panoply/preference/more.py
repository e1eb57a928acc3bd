"""MORE's weights of the sources in a step (arXiv 2312.07401, algorithm 1), and its baselines.

    g_i = grad of L_i with respect to the head,   m_i <- (1 - a) m_i + a g_i
    lambda = argmin over the simplex || sum_i lambda_i normalized(m_i) ||^2
    L = sum_i lambda_i L_i

Legend: `P` pairs, `K` sources, `D` numbers of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import numpy as np
import torch

from panoply.config.preference import Balanced, Mixed, More, Normalizer, Weighting
from panoply.preference.distributed import Group
from panoply.preference.min_norm import min_norm
from panoply.preference.step import (
    PairLoss,
    PairSources,
    PairTree,
    SourceSums,
    StepOutput,
    compute_gradients,
    source_gradients,
)
from panoply.preference.train_state import TrainState
from panoply.types import Array


@dataclass(frozen=True, slots=True)
class MoreState:
    """State of MORE between steps."""

    momentum_KD: Array | None
    """m: running means of the sources' gradients; None before the first step."""
    source_weights_K: Array
    """lambda of the latest step; at first 1 / K."""

    @classmethod
    def begin(cls, num_sources: int) -> MoreState:
        """Returns the state before the first step."""
        return cls(None, np.full(num_sources, 1 / num_sources))


def more_step(state: MoreState, grad_KD: Array, loss_K: Array, config: More) -> MoreState:
    """Returns the state after a step: lambda from the gradients of all workers.

    The running mean starts at the first gradient, not at a random or zero vector. With `K = 1`
    lambda is 1.

    Args:
        state: state before the step.
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


def weighted_gradients(
    model: TrainState,
    trees: Sequence[PairTree],
    sources: PairSources,
    weighting: Weighting,
    state: MoreState,
    *,
    loss: PairLoss,
    budget: int,
    delayed: bool = False,
) -> tuple[StepOutput, MoreState]:
    """Sets the gradients of a step with weighted sources; returns its results and MORE's state.

        L = sum_s lambda_s / N_s  sum over the pairs p of source s of w_p L_p,   N_s = sum w_p

    Mixed: lambda_s = N_s / N, the mean over all pairs. Balanced: lambda_s = 1 / K. MORE: the least
    norm, from the sums over all workers.

    Args:
        model: the parameters that are trained.
        trees: this worker's part of the step.
        sources: sources of the pairs.
        weighting: MORE or a baseline.
        state: MORE's state before the step.
        loss: weighted loss of each pair.
        budget: most tokens of a forward.
        delayed: whether MORE takes lambda of the step before, which saves a forward where the part
            does not fit a single one.
    """
    net, group, padding = model.net, model.group, model.num_padding_forwards
    backward = partial(compute_gradients, net, trees, loss=loss, num_padding_forwards=padding)
    match weighting:
        case Mixed():
            shares_P = torch.full((len(sources.source_P),), 1 / float(sources.total_S.sum()))
            return backward(budget=budget, shares_P=shares_P), state
        case Balanced():
            shares_P = sources.shares(state.source_weights_K)
            return backward(budget=budget, shares_P=shares_P), state
        case More() if delayed:
            shares_P = sources.shares(state.source_weights_K)
            out = backward(budget=budget, shares_P=shares_P, sources=sources)
            assert out.sums is not None
            return out, _all_reduced_step(state, out.sums, sources, weighting, group)
        case More():
            first = source_gradients(
                net, trees, sources, budget=budget, loss=loss, num_padding_forwards=padding
            )
            # Outside of both retries after running out of memory: workers reduce once a step.
            state = _all_reduced_step(state, first.sums, sources, weighting, group)
            shares_P = sources.shares(state.source_weights_K)
            return backward(budget=first.budget, shares_P=shares_P, forwards=first.forwards), state
        case _:
            assert_never(weighting)


def _all_reduced_step(
    state: MoreState, sums: SourceSums, sources: PairSources, config: More, group: Group
) -> MoreState:
    """Returns MORE's state after a step; gradients that are not finite leave it as it is."""
    grad_KD = group.all_reduce_sum(sums.grad_SD) / sources.total_S[:, None]
    loss_K = group.all_reduce_sum(sums.loss_S) / sources.total_S
    # Such a step ends the run before it counts, and the reason is the loss, not the solver.
    if not (np.isfinite(grad_KD).all() and np.isfinite(loss_K).all()):
        return state
    return more_step(state, grad_KD, loss_K, config)
