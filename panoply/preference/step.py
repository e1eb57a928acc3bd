"""One optimizer step on preference pairs, through token trees. Pure functions, one process.

A step is a fixed list of pairs, a function of (seed, step). Its loss is a sum over pairs, each with
its share; shares add up to one over *all* workers, so neither the number of workers nor the token
budget changes the step. Micro-batches follow the budget.

Legend: `P` pairs of this worker's part of the step, `R` responses, `D` hidden size, `K` heads,
`S` sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from panoply.model.budget import within_memory
from panoply.model.reward_net import RewardNet, RewardOutput, score
from panoply.model.tree import Branch, TokenTree, first_fit
from panoply.preference.losses import bradley_terry
from panoply.types import Array, Ints


@dataclass(frozen=True, slots=True)
class PairTree:
    """A prompt with responses, and which of them were preferred to which."""

    tree: TokenTree
    chosen: tuple[int, ...] = (0,)
    """Branch of the preferred response of each pair."""
    rejected: tuple[int, ...] = (1,)
    """Branch of the other response of each pair."""
    inputs: Tensor | None = None
    """What goes into the part that is trained where the part below was computed before."""

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


class PairOutputs(NamedTuple):
    """What one forward says of some pairs of the step."""

    chosen_PK: Tensor
    rejected_PK: Tensor
    chosen_log_prob_P: Tensor | None
    """log pi(y+ | x); None without a language-model head."""
    rejected_log_prob_P: Tensor | None
    chosen_tokens_P: Tensor
    places: Ints
    """Which of the step's pairs these are."""

    @property
    def margin_PK(self) -> Tensor:
        """R(x, y+) - R(x, y-) of each head."""
        return self.chosen_PK - self.rejected_PK


Loss: TypeAlias = Callable[[PairOutputs], Tensor]
"""Returns the loss `[P]` of each pair."""


def reward_loss(compared: PairOutputs) -> Tensor:
    """Bradley-Terry, summed over the heads of an ensemble, each as if it were alone."""
    return bradley_terry(compared.margin_PK).sum(-1)


@dataclass(frozen=True, slots=True)
class SourceSums:
    """Sums over the pairs of each source: they add up over micro-batches and workers."""

    grad_SD: Array
    """Of the losses' gradients with respect to the head."""
    loss_S: Array

    def __add__(self, other: SourceSums) -> SourceSums:
        return SourceSums(self.grad_SD + other.grad_SD, self.loss_S + other.loss_S)

    @classmethod
    def zero(cls, num_sources: int, size: int) -> SourceSums:
        """Returns the sums of no pairs."""
        return cls(np.zeros((num_sources, size)), np.zeros(num_sources))


@dataclass(frozen=True, slots=True)
class SourceWeights:
    """How the sources of a step are weighed by what the step itself shows."""

    source_P: Ints
    """Source of each of this worker's pairs."""
    num_sources: int
    shares: Callable[[SourceSums], Tensor]
    """Returns the pairs' shares `[P]` from the sums of this worker; called once in a forward's
    course, again only where memory ran out meanwhile."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step did besides setting gradients."""

    loss: float
    margin_PK: Tensor
    sums: SourceSums | None
    """Of this worker's pairs, where sources are weighed."""
    budget: int
    """Tokens of a forward that memory allowed."""


def micro_batches(comparisons: Sequence[PairTree], budget: int) -> list[list[int]]:
    """Packs comparisons into forwards of at most `budget` tokens; a larger tree gets its own.

    A tree is never split: the losses of its pairs need both responses. Returns their places.
    """
    return first_fit([comparison.tree.num_tokens for comparison in comparisons], budget)


def pair_up(out: RewardOutput, comparisons: Sequence[PairTree], at: Sequence[int]) -> PairOutputs:
    """Reads the two sides of each pair out of a forward."""
    batch = [comparisons[i] for i in at]
    first = np.cumsum([0, *(len(item.tree.branches) for item in batch)])
    pairs = np.cumsum([0, *(len(item.chosen) for item in comparisons)])
    chosen = [f + b for f, item in zip(first, batch, strict=False) for b in item.chosen]
    rejected = [f + b for f, item in zip(first, batch, strict=False) for b in item.rejected]
    places = np.concatenate([np.arange(pairs[i], pairs[i + 1]) for i in at])
    a, b = (torch.as_tensor(rows, device=out.scores_RK.device) for rows in (chosen, rejected))
    spoken = out.log_prob_R
    return PairOutputs(
        out.scores_RK[a],
        out.scores_RK[b],
        None if spoken is None else spoken[a],
        None if spoken is None else spoken[b],
        out.num_tokens_R[a],
        places,
    )


def source_sums(
    net: RewardNet,
    out: RewardOutput,
    compared: Callable[[RewardOutput], PairOutputs],
    loss: Loss,
    weigh: SourceWeights,
) -> SourceSums:
    """Returns the head's gradient of each source's losses, on features that carry no gradient.

    g_s = sum over the pairs p of source s of dL_p/dw,   w the head
    """
    weight = net.head.weight
    sums = SourceSums.zero(weigh.num_sources, weight.numel())
    with torch.enable_grad():
        fixed = out._replace(scores_RK=score(net.head, out.features_RD.detach()))
        found = compared(fixed)
        loss_P, source_P = loss(found), weigh.source_P[found.places]
        for s in np.unique(source_P):
            own = loss_P[torch.from_numpy(source_P == s).to(loss_P.device)]
            (grad,) = torch.autograd.grad(own.sum(), weight, retain_graph=True)
            sums.grad_SD[s] = grad.flatten().double().cpu().numpy()
            sums.loss_S[s] = float(own.detach().sum())
    return sums


def compute_gradients(
    net: RewardNet,
    comparisons: Sequence[PairTree],
    *,
    budget: int,
    shares_P: Tensor | None = None,
    loss: Loss = reward_loss,
    weigh: SourceWeights | None = None,
    ahead: bool = False,
    idle: Callable[[int], int] | None = None,
) -> StepOutput:
    """Sets the gradients of a step.

        loss = sum_p share_p L_p,   share_p = 1/N for N pairs of all workers, if not given

    Gradients of earlier steps are cleared first, and again where memory runs out half-way: then the
    step begins anew with half the budget.

    Args:
        net: the backbone with its heads.
        comparisons: this worker's part of the step.
        budget: most tokens of a forward; the gradients do not depend on it.
        shares_P: share of each pair.
        loss: of each pair.
        weigh: collects the sums of the sources.
        ahead: shares come from `weigh`, from the sums of this very step. One forward where the
            part fits into one, else a forward more without gradients.
        idle: told the number of forwards, returns how many more to run for nothing: sharded
            workers compute in step.
    """
    num_pairs = sum(len(item.chosen) for item in comparisons)
    if shares_P is None:
        shares_P = torch.full((num_pairs,), 1 / max(1, num_pairs))

    def sums_of(out: RewardOutput, at: Sequence[int]) -> SourceSums:
        assert weigh is not None
        return source_sums(net, out, lambda o: pair_up(o, comparisons, at), loss, weigh)

    def run(budget: int) -> StepOutput:
        net.zero_grad()
        batches, given_P = micro_batches(comparisons, budget), shares_P
        size = net.head.weight.numel()
        sums = SourceSums.zero(weigh.num_sources, size) if weigh else None
        if weigh and sums and ahead and len(batches) != 1:
            with torch.no_grad():
                sums = sum((sums_of(_forward(net, comparisons, at), at) for at in batches), sums)
            given_P = weigh.shares(sums)
        total, margin_PK = 0.0, torch.zeros(num_pairs, net.head.out_features)
        for at in batches:
            out = _forward(net, comparisons, at)
            if weigh and sums and not (ahead and len(batches) != 1):
                sums += sums_of(out, at)
                given_P = weigh.shares(sums) if ahead else given_P
            found = pair_up(out, comparisons, at)
            part = (loss(found) * given_P[found.places].to(found.chosen_PK.device)).sum()
            part.backward()
            total += float(part.detach())
            margin_PK[found.places] = found.margin_PK.detach().cpu()
        for _ in range(idle(len(batches)) if idle else 0):
            (0 * net([IDLE]).scores_RK.sum()).backward()
        return StepOutput(total, margin_PK, sums, budget)

    # Sharded workers cannot begin anew one by one.
    return run(budget) if idle else within_memory(run, budget)[0]


IDLE = TokenTree((0,), (Branch((0,), 0, 1), Branch((1,), 0, 1)), gate=0)
"""The least that a forward can be run on."""


def _forward(
    net: RewardNet, comparisons: Sequence[PairTree], at: Sequence[int], *, policy: bool = True
) -> RewardOutput:
    batch = [comparisons[i] for i in at]
    return net([item.tree for item in batch], [item.inputs for item in batch], policy=policy)


@torch.no_grad()
def margins(
    net: RewardNet,
    comparisons: Sequence[PairTree],
    budget: int,
    idle: Callable[[int], int] | None = None,
    *,
    policy: bool = False,
) -> PairOutputs:
    """Returns both sides of all pairs, in their order, without gradients; see `compute_gradients`.

    There must be a comparison, but for a worker that only keeps others company (`idle`). `policy`
    asks for log-probabilities too.
    """
    batches = micro_batches(comparisons, budget)
    parts = [
        pair_up(_forward(net, comparisons, at, policy=policy), comparisons, at) for at in batches
    ]
    for _ in range(idle(len(batches)) if idle else 0):
        net([IDLE])
    if not parts:
        none = torch.zeros(0, net.head.out_features)
        return PairOutputs(none, none, none[:, 0], none[:, 0], none[:, 0], np.arange(0))
    order = torch.from_numpy(np.argsort(np.concatenate([part.places for part in parts])))
    columns: list[Any] = [
        None if column[0] is None else torch.cat([x.cpu() for x in column if x is not None])[order]
        for column in zip(*(part[:5] for part in parts), strict=True)
    ]
    return PairOutputs._make([*columns, np.arange(len(order))])
