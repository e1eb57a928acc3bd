"""One optimizer step on preference pairs, through token trees. Pure functions, one process.

A step is a fixed list of pair ids, a function of (seed, step). Its loss is a sum over pairs divided
by the pairs of *all* workers, so neither the number of workers nor the token budget changes it;
micro-batches follow the budget.

Legend: `P` pairs, `R` responses, `D` hidden size, `K` heads of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from panoply.model.budget import within_memory
from panoply.model.decoder import Decoder
from panoply.model.forward import forward_trees
from panoply.model.tree import TokenTree, first_fit
from panoply.train.losses import bradley_terry

Loss: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt with responses, and which of them were preferred to which."""

    tree: TokenTree
    chosen: tuple[int, ...] = (0,)
    """Branch of the preferred response of each pair."""
    rejected: tuple[int, ...] = (1,)
    """Branch of the other response of each pair."""

    def __post_init__(self) -> None:
        named = (*self.chosen, *self.rejected)
        if len(self.chosen) != len(self.rejected) or not self.chosen:
            raise ValueError(
                f"a comparison needs as many chosen as rejected branches and at least one, got "
                f"chosen={self.chosen!r}, rejected={self.rejected!r}"
            )
        if min(named) < 0 or max(named) >= len(self.tree.branches):
            raise ValueError(
                f"chosen={self.chosen!r} and rejected={self.rejected!r} must name branches in "
                f"0..{len(self.tree.branches) - 1}"
            )


def step_ids(seed: int, step: int, num_pairs: int, pairs_per_step: int) -> list[int]:
    """Returns the pairs of a step: every epoch is a new order, its last step may be shorter.

    Raises:
        ValueError: there is no pair, or no pair in a step.
    """
    if num_pairs < 1 or pairs_per_step < 1 or step < 0:
        raise ValueError(
            f"num_pairs and pairs_per_step must be positive and step not negative, got "
            f"{num_pairs!r}, {pairs_per_step!r}, {step!r}"
        )
    epoch, place = divmod(step, -(-num_pairs // pairs_per_step))
    order = np.random.default_rng((seed, epoch)).permutation(num_pairs)
    return order[place * pairs_per_step : (place + 1) * pairs_per_step].tolist()


def micro_batches(comparisons: Sequence[Comparison], budget: int) -> list[list[Comparison]]:
    """Packs comparisons into forwards of at most `budget` tokens; a larger tree gets its own.

    A tree is never split: the losses of its pairs need both responses.
    """
    bins = first_fit([comparison.tree.num_tokens for comparison in comparisons], budget)
    return [[comparisons[i] for i in chosen] for chosen in bins]


def margins(decoder: Decoder, head: nn.Module, comparisons: Sequence[Comparison]) -> Tensor:
    """Returns R(x, y+) - R(x, y-) of every pair, `[P]`, or `[P, K]` for an ensemble.

    Args:
        decoder: the stack, `trainable` where its weights are trained too.
        head: maps last states `[R, D]` of the top depth to scores `[R, K]`.
        comparisons: trees that run side by side in one row.
    """
    features = forward_trees(decoder, [comparison.tree for comparison in comparisons])
    scores_RK = head(features.last_RLD[:, -1])
    first = np.cumsum([0, *(len(comparison.tree.branches) for comparison in comparisons)])

    def places(name: str) -> Tensor:
        found = [
            int(start) + branch
            for start, comparison in zip(first, comparisons, strict=False)
            for branch in getattr(comparison, name)
        ]
        return torch.tensor(found, device=scores_RK.device)

    # Scores are float32 from the head on, also under autocast.
    return (scores_RK[places("chosen")].float() - scores_RK[places("rejected")].float()).squeeze(-1)


def compute_gradients(
    decoder: Decoder,
    head: nn.Module,
    comparisons: Sequence[Comparison],
    *,
    num_pairs: int,
    budget: int,
    loss: Loss = bradley_terry,
) -> tuple[float, int]:
    """Sets the gradients of a step and returns its loss, and the budget that memory allowed.

        loss = 1/N sum_p L(R(x_p, y_p+) - R(x_p, y_p-)),   N the pairs of all workers

    Gradients of earlier steps are cleared first, and again where memory runs out half-way: then the
    step begins anew with half the budget.

    Args:
        decoder: the stack.
        head: maps last states to scores.
        comparisons: this worker's part of the step.
        num_pairs: N.
        budget: most tokens of a forward; the gradients do not depend on it.
        loss: of each pair, from its margin.
    """

    def run(budget: int) -> float:
        decoder.model.zero_grad()
        head.zero_grad()
        total = 0.0
        for batch in micro_batches(comparisons, budget):
            part = loss(margins(decoder, head, batch)).sum() / num_pairs
            part.backward()
            total += float(part.detach())
        return total

    return within_memory(run, budget)
