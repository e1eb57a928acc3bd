"""Gradients of one optimizer step on preference pairs, through token trees, on one worker.

A step is a fixed list of pairs, a function of (seed, step). Its loss is a sum over pairs, each with
its share; shares add up to one over *all* workers, so neither the number of workers nor the token
budget changes the step. Micro-batches follow the budget.

Legend: `P` pairs of this worker's part of the step, `R` responses, `D` hidden size, `K` heads,
`S` sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from panoply.model.budget import within_memory
from panoply.model.reward_net import RewardNet, RewardOutput, score
from panoply.model.tree import Branch, TokenTree, first_fit
from panoply.preference.losses import bradley_terry
from panoply.types import Array, Ints

DUMMY_TREE = TokenTree((0,), (Branch((0,), 0, 1), Branch((1,), 0, 1)), gate=0)
"""Smallest input of a forward: what sharded workers without pairs compute in step with others."""


@dataclass(frozen=True, slots=True)
class PairTree:
    """A prompt with responses as a token tree, and the pairs among the responses."""

    tree: TokenTree
    chosen: tuple[int, ...] = (0,)
    """Branch of the preferred response of each pair."""
    rejected: tuple[int, ...] = (1,)
    """Branch of the other response of each pair."""
    cached_activations: Tensor | None = None
    """Input of the trained part, where the frozen part below was computed before."""

    def __post_init__(self) -> None:
        branches = (*self.chosen, *self.rejected)
        if len(self.chosen) != len(self.rejected) or not self.chosen:
            raise ValueError(
                f"a comparison needs as many chosen as rejected branches and at least one, got "
                f"chosen={self.chosen!r}, rejected={self.rejected!r}"
            )
        if min(branches) < 0 or max(branches) >= len(self.tree.branches):
            raise ValueError(
                f"chosen={self.chosen!r} and rejected={self.rejected!r} must name branches in "
                f"0..{len(self.tree.branches) - 1}"
            )


def completion_tokens(trees: Sequence[PairTree]) -> Array:
    """Returns the tokens `[P, 2]` of both sides of each pair, with the one that ends each."""
    sizes: list[tuple[int, int]] = []
    for item in trees:
        # A slice: a response that was cut off has no token behind its last one.
        size = [len(b.tokens[b.start : b.stop + 1]) for b in item.tree.branches]
        sizes += [(size[i], size[j]) for i, j in zip(item.chosen, item.rejected, strict=True)]
    return np.array(sizes, np.float64).reshape(-1, 2)


class PairOutputs(NamedTuple):
    """Outputs of a forward for both sides of some pairs of the step."""

    chosen_PK: Tensor
    rejected_PK: Tensor
    logps_P2: Tensor | None
    """log pi(y+ | x) and log pi(y- | x); None without a language-model head."""
    chosen_tokens_P: Tensor
    indices_P: Ints
    """Numbers of these pairs in the step."""

    @property
    def margin_PK(self) -> Tensor:
        """R(x, y+) - R(x, y-) of each head."""
        return self.chosen_PK - self.rejected_PK

    @property
    def log_ratio_P(self) -> Tensor:
        """Difference log pi(y+ | x) - log pi(y- | x), of a net with a language-model head."""
        assert self.logps_P2 is not None
        return self.logps_P2[:, 0] - self.logps_P2[:, 1]


PairLoss: TypeAlias = Callable[[PairOutputs], Tensor]
"""Function from the outputs of some pairs to their losses `[P]`."""


def reward_loss(outputs: PairOutputs) -> Tensor:
    """Bradley-Terry, summed over the heads of an ensemble, each as if it were alone."""
    return bradley_terry(outputs.margin_PK).sum(-1)


@dataclass(frozen=True, slots=True)
class SourceSums:
    """Sums over the pairs of each source: they add up over micro-batches and workers."""

    grad_SD: Array
    """Gradients of the losses with respect to the head."""
    loss_S: Array

    def __add__(self, other: SourceSums) -> SourceSums:
        return SourceSums(self.grad_SD + other.grad_SD, self.loss_S + other.loss_S)


@dataclass(frozen=True, slots=True)
class PairSources:
    """Sources of the pairs of a step."""

    source_P: Ints
    """Source of each of this worker's pairs."""
    total_S: Array
    """Summed weights of each source's pairs, over all workers."""

    def zero(self, net: RewardNet) -> SourceSums:
        """Returns the sums of no pairs."""
        num_sources = len(self.total_S)
        return SourceSums(np.zeros((num_sources, net.head.weight.numel())), np.zeros(num_sources))

    def shares(self, weight_S: Array) -> Tensor:
        """Returns the share of each pair `[P]` where the sources have these weights."""
        return torch.from_numpy(weight_S / self.total_S)[self.source_P].float()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Results of a step besides the gradients."""

    loss: float
    margin_PK: Tensor
    budget: int
    """Tokens of a forward that memory allowed."""
    sums: SourceSums | None = None
    """Sums of this worker's pairs by source, where `sources` was passed."""


class SourceGradients(NamedTuple):
    """Gradients of the sources, and the forward that they came from."""

    sums: SourceSums
    forwards: list[RewardOutput]
    """The forward with its graph, where the part fits one, for `compute_gradients`; else empty."""
    budget: int
    """Tokens of a forward that memory allowed."""


def micro_batches(trees: Sequence[PairTree], budget: int) -> list[list[int]]:
    """Packs trees into forwards of at most `budget` tokens; a larger tree gets its own.

    A tree is never split: the losses of its pairs need both responses. Returns their numbers.
    """
    return first_fit([item.tree.num_tokens for item in trees], budget)


def pair_outputs(out: RewardOutput, trees: Sequence[PairTree], batch: Sequence[int]) -> PairOutputs:
    """Selects the two sides of each pair from a forward on the trees of a micro-batch."""
    first_pair = np.cumsum([0, *(len(item.chosen) for item in trees)])
    chosen: list[int] = []
    rejected: list[int] = []
    indices: list[int] = []
    first_branch = 0
    for i in batch:
        item = trees[i]
        chosen += [first_branch + branch for branch in item.chosen]
        rejected += [first_branch + branch for branch in item.rejected]
        indices += range(first_pair[i], first_pair[i + 1])
        first_branch += len(item.tree.branches)
    device = out.scores_RK.device
    sides_P2 = torch.tensor([chosen, rejected], device=device).T
    return PairOutputs(
        out.scores_RK[sides_P2[:, 0]],
        out.scores_RK[sides_P2[:, 1]],
        None if out.log_prob_R is None else out.log_prob_R[sides_P2],
        out.num_tokens_R[sides_P2[:, 0]],
        np.asarray(indices, np.int64),
    )


def compute_gradients(
    net: RewardNet,
    trees: Sequence[PairTree],
    *,
    budget: int,
    shares_P: Tensor | None = None,
    loss: PairLoss = reward_loss,
    sources: PairSources | None = None,
    forwards: list[RewardOutput] | None = None,
    num_padding_forwards: Callable[[int], int] | None = None,
) -> StepOutput:
    """Sets the gradients of a step.

        loss = sum_p share_p L_p,   share_p = 1/N for N pairs of all workers, if not given

    Gradients of earlier steps are cleared first, and again where memory runs out half-way: then the
    step begins anew with half the budget.

    Args:
        net: the backbone with its heads.
        trees: this worker's part of the step.
        budget: most tokens of a forward; the gradients do not depend on it.
        shares_P: share of each pair.
        loss: loss of each pair.
        sources: collects the sums of the sources on the way.
        forwards: forwards that `source_gradients` has run already; the list is emptied.
        num_padding_forwards: see `TrainState.num_padding_forwards`.
    """
    num_pairs = sum(len(item.chosen) for item in trees)
    if shares_P is None:
        shares_P = torch.full((num_pairs,), 1 / max(1, num_pairs))

    def run(budget: int) -> StepOutput:
        # A forward without gradients leaves sharded parameters gathered: those are other tensors,
        # and clearing their gradients would keep those of the shards.
        if isinstance(net, FSDPModule):
            net.reshard()
        net.zero_grad()
        batches = micro_batches(trees, budget)
        sums = sources.zero(net) if sources else None
        total, margin_PK = 0.0, torch.zeros(num_pairs, net.head.out_features)
        for batch in batches:
            # Taken out of the list: a second attempt needs a graph and memory of its own.
            out = forwards.pop() if forwards else _forward(net, trees, batch)
            if sources and sums:
                sums += _head_gradients(net, out, trees, batch, loss, sources)
            pairs = pair_outputs(out, trees, batch)
            part = (loss(pairs) * shares_P[pairs.indices_P].to(pairs.chosen_PK.device)).sum()
            part.backward()
            total += float(part.detach())
            margin_PK[pairs.indices_P] = pairs.margin_PK.detach().cpu()
        for _ in range(num_padding_forwards(len(batches)) if num_padding_forwards else 0):
            (0 * net([DUMMY_TREE]).scores_RK.sum()).backward()
        return StepOutput(total, margin_PK, budget, sums)

    # Sharded workers cannot begin anew one by one.
    return run(budget) if num_padding_forwards else within_memory(run, budget)[0]


def source_gradients(
    net: RewardNet,
    trees: Sequence[PairTree],
    sources: PairSources,
    *,
    budget: int,
    loss: PairLoss = reward_loss,
    num_padding_forwards: Callable[[int], int] | None = None,
) -> SourceGradients:
    """Returns the head's gradient of each source's losses; no parameter's `grad` changes.

        g_s = sum over the pairs p of source s of dL_p/dw,   w the head

    Arguments as in `compute_gradients`.
    """

    def run(budget: int) -> SourceGradients:
        batches = micro_batches(trees, budget)
        # A single forward keeps its graph for the backward pass. Several would not fit together,
        # and sharded workers run theirs again in step with those that have several.
        keeps_graph = len(batches) == 1 and num_padding_forwards is None
        sums, forwards = sources.zero(net), list[RewardOutput]()
        with torch.set_grad_enabled(keeps_graph):
            for batch in batches:
                out = _forward(net, trees, batch)
                sums += _head_gradients(net, out, trees, batch, loss, sources)
                if keeps_graph:
                    forwards.append(out)
            for _ in range(num_padding_forwards(len(batches)) if num_padding_forwards else 0):
                net([DUMMY_TREE])
        return SourceGradients(sums, forwards, budget)

    return run(budget) if num_padding_forwards else within_memory(run, budget)[0]


def _head_gradients(
    net: RewardNet,
    out: RewardOutput,
    trees: Sequence[PairTree],
    batch: Sequence[int],
    loss: PairLoss,
    sources: PairSources,
) -> SourceSums:
    """Returns the sums of one forward, on features that carry no gradient."""
    sums, weight = sources.zero(net), net.head.weight
    with torch.enable_grad():
        detached = out._replace(scores_RK=score(net.head, out.features_RD.detach()))
        pairs = pair_outputs(detached, trees, batch)
        loss_P, source_P = loss(pairs), sources.source_P[pairs.indices_P]
        for s in np.unique(source_P):
            loss_s = loss_P[torch.from_numpy(source_P == s).to(loss_P.device)].sum()
            (grad,) = torch.autograd.grad(loss_s, weight, retain_graph=True)
            sums.grad_SD[s] = grad.flatten().double().cpu().numpy()
            sums.loss_S[s] = float(loss_s.detach())
    return sums


def _forward(
    net: RewardNet, trees: Sequence[PairTree], batch: Sequence[int], *, policy: bool = True
) -> RewardOutput:
    items = [trees[i] for i in batch]
    inputs = [item.cached_activations for item in items]
    return net([item.tree for item in items], inputs, policy=policy)


@torch.no_grad()
def evaluate_pairs(
    net: RewardNet,
    trees: Sequence[PairTree],
    budget: int,
    num_padding_forwards: Callable[[int], int] | None = None,
    *,
    policy: bool = False,
) -> PairOutputs:
    """Returns the outputs of all pairs, in their order and on the CPU, without gradients.

    There must be a tree, but for a sharded worker that only keeps in step with others. `policy`
    asks for log-probabilities too.
    """
    batches = micro_batches(trees, budget)
    parts: list[PairOutputs] = []
    for batch in batches:
        parts.append(pair_outputs(_forward(net, trees, batch, policy=policy), trees, batch))
    for _ in range(num_padding_forwards(len(batches)) if num_padding_forwards else 0):
        net([DUMMY_TREE])
    if not parts:
        none_PK = torch.zeros(0, net.head.out_features)
        none_P2 = torch.zeros(0, 2)
        return PairOutputs(none_PK, none_PK, none_P2, none_P2[:, 0], np.arange(0))
    order = torch.from_numpy(np.argsort(np.concatenate([part.indices_P for part in parts])))
    logps = [part.logps_P2 for part in parts if part.logps_P2 is not None]
    return PairOutputs(
        torch.cat([part.chosen_PK for part in parts]).cpu()[order],
        torch.cat([part.rejected_PK for part in parts]).cpu()[order],
        torch.cat(logps).cpu()[order] if logps else None,
        torch.cat([part.chosen_tokens_P for part in parts]).cpu()[order],
        np.arange(len(order)),
    )
