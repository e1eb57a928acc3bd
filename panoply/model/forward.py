"""The shared-prefix forward: rows of token trees go through a decoder, pooled features come out.

Legend: `B` rows of one forward, `T` tokens of a row, `R` responses, `G` trees (prompts), `L`
depths, `D` hidden size.

Three exact ways, the cheapest first: attention by trees (`panoply.model.attention`), a dense tree
mask through the model's own attention (`panoply.model.mask`), and plain right-padded batches. Which
of them a model takes is checked once, on numbers, by `agrees_with`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from panoply.model.attention import make_plan
from panoply.model.decoder import Decoder
from panoply.model.flex import make_flex_plan, pad_flex_row
from panoply.model.layout import TreeLayout, to_layout
from panoply.model.mask import attention_masks
from panoply.model.tree import Branch, TokenTree, pack


@dataclass(frozen=True, slots=True)
class Features:
    """Pooled hidden states of a list of trees, float32, in the order of the trees."""

    gate_GLD: Tensor
    """State at the gate position of each prompt."""
    last_RLD: Tensor
    """State at the last token of each render; responses tree by tree."""
    mean_RLD: Tensor
    """Mean state over each response's tokens, without the template's."""


def forward_trees(decoder: Decoder, trees: Sequence[TokenTree]) -> Features:
    """Computes features of trees side by side in one row, differentiable, on the model's device."""
    return forward_rows(decoder, [trees])[0]


def row_states(
    decoder: Decoder, trees: Sequence[TokenTree], inputs: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, TreeLayout]:
    """Returns the states `[T, D]` of the top depth of trees in one row, and the row's layout.

    Args:
        decoder: the stack.
        trees: prompts with their responses.
        inputs: inputs `[T, D]` of the first layer, for each tree; None embeds the tokens.
    """
    layout = to_layout(trees)
    num_tokens, run = len(layout.tokens_T), _as_run(decoder, layout)
    tokens_BT, embeds_BTD = torch.from_numpy(run.tokens_T)[None].to(decoder.device), None
    if inputs is not None and all(x is not None for x in inputs):
        tokens_BT = None
        embeds_TD = torch.cat([x for x in inputs if x is not None]).to(decoder.device)
        embeds_BTD = pad(embeds_TD, (0, 0, 0, len(run.tokens_T) - num_tokens))[None]
    states = decoder.states(
        tokens_BT,
        embeds_BTD=embeds_BTD,
        position_ids=torch.from_numpy(run.positions_T)[None].to(decoder.device),
        **_attention_kwargs(decoder, [run]),
    )
    return states[-1][0, :num_tokens], layout


def _as_run(decoder: Decoder, layout: TreeLayout) -> TreeLayout:
    """Returns a row with the padding that the kernel of its attention asks for."""
    padded = decoder.attends_by_trees and decoder.kernel == "flex"
    return pad_flex_row(layout) if padded else layout


def forward_rows(decoder: Decoder, rows: Sequence[Sequence[TokenTree]]) -> list[Features]:
    """Runs rows of trees in one forward; one `Features` per row, on the model's device."""
    if decoder.attends_by_trees and len(rows) > 1:
        # Trees cost each other nothing: rows are laid end to end, and no row is padded.
        joined = forward_trees(decoder, [tree for trees in rows for tree in trees])
        num_responses = [sum(len(tree.branches) for tree in trees) for trees in rows]
        gates = joined.gate_GLD.split([len(trees) for trees in rows])
        lasts = joined.last_RLD.split(num_responses)
        means = joined.mean_RLD.split(num_responses)
        return [Features(*parts) for parts in zip(gates, lasts, means, strict=True)]
    layouts = [_as_run(decoder, to_layout(trees)) for trees in rows]
    width = max(len(layout.tokens_T) for layout in layouts)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.long)
    positions_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for i, layout in enumerate(layouts):
        tokens_BT[i, : len(layout.tokens_T)] = torch.from_numpy(layout.tokens_T)
        positions_BT[i, : len(layout.tokens_T)] = torch.from_numpy(layout.positions_T)
    states = decoder.states(
        tokens_BT.to(decoder.device),
        position_ids=positions_BT.to(decoder.device),
        **_attention_kwargs(decoder, layouts),
    )
    return [pool([s[i] for s in states], layout) for i, layout in enumerate(layouts)]


def _attention_kwargs(decoder: Decoder, layouts: Sequence[TreeLayout]) -> dict[str, Any]:
    """Returns the model's inputs that restrict each token to its own path in its tree."""
    if decoder.attends_by_trees:
        # Models hand a 4-D mask on as it is: this one keeps them from making one of T x T.
        nothing = torch.zeros(1, 1, 1, 1, device=decoder.device)
        if decoder.kernel == "flex":
            return {"attention_mask": nothing, "tree": make_flex_plan(layouts[0], decoder.device)}
        return {"attention_mask": nothing, "tree": make_plan(layouts[0])}
    masks = attention_masks(layouts, decoder.config, decoder.dtype)
    if isinstance(masks, dict):
        return {"attention_mask": {name: m.to(decoder.device) for name, m in masks.items()}}
    return {"attention_mask": masks.to(decoder.device)}


def pool(states_TD: Sequence[Tensor], layout: TreeLayout) -> Features:
    """Pools the states of one row into features, at every depth."""
    states_LTD = torch.stack([s.float() for s in states_TD])
    device = states_LTD.device
    # A sum per response as one product: faster and more exact than differences of running sums.
    share_RT = np.zeros((len(layout.response_tokens_R), states_LTD.shape[1]), dtype=np.float32)
    for r, places in enumerate(layout.response_tokens_R):
        share_RT[r, places] = 1.0 / len(places)
    mean_LRD = torch.from_numpy(share_RT).to(device) @ states_LTD
    last_LRD = states_LTD[:, torch.from_numpy(layout.last_R).to(device)]
    gate_LGD = states_LTD[:, torch.from_numpy(layout.gates_G).to(device)]
    return Features(
        gate_GLD=gate_LGD.transpose(0, 1).contiguous(),
        last_RLD=last_LRD.transpose(0, 1).contiguous(),
        mean_RLD=mean_LRD.transpose(0, 1).contiguous(),
    )


@torch.no_grad()
def encode(
    decoder: Decoder, trees: Sequence[TokenTree], *, budget: int = 1024, rows_per_forward: int = 1
) -> Features:
    """Computes the features of every prompt and response, by the shared-prefix forward.

    Args:
        decoder: the frozen stack.
        trees: prompts with their responses.
        budget: tokens of a row, see `pack`; the features do not depend on it.
        rows_per_forward: rows in one forward; 1 suits a CPU, more fill an accelerator.
    """
    # Rows come in another order than the trees: each feature is written to its tree's place.
    rows = iter(pack(trees, budget))
    num_responses = sum(len(tree.branches) for tree in trees)
    shape = (len(decoder.depths), decoder.hidden_size)
    gate = torch.empty(len(trees), *shape)
    last, mean = torch.empty(num_responses, *shape), torch.empty(num_responses, *shape)
    first_response = np.cumsum([0, *(len(tree.branches) for tree in trees)]).tolist()
    while batch := list(islice(rows, rows_per_forward)):
        outputs = forward_rows(decoder, [row.trees for row in batch])
        for row, features in zip(batch, outputs, strict=True):
            origins = [origin for tree in row.origins for origin in tree]
            responses = [first_response[origin.tree] + origin.branch for origin in origins]
            gate[[tree[0].tree for tree in row.origins]] = features.gate_GLD.cpu()
            last[responses] = features.last_RLD.cpu()
            mean[responses] = features.mean_RLD.cpu()
    return Features(gate, last, mean)


@torch.no_grad()
def encode_plain(decoder: Decoder, trees: Sequence[TokenTree], *, batch_size: int = 8) -> Features:
    """Computes the features of `encode` from separate, right-padded sequences.

    It is the reference that trees are compared with, and the fallback where a model takes none.
    """
    leaves = [(g, branch) for g, tree in enumerate(trees) for branch in tree.branches]
    shape = (len(decoder.depths), decoder.hidden_size)
    gate = torch.empty(len(trees), *shape)
    last, mean = torch.empty(len(leaves), *shape), torch.empty(len(leaves), *shape)
    for i in range(0, len(leaves), batch_size):
        batch = leaves[i : i + batch_size]
        lengths = [len(trees[g].shared) + len(branch.tokens) for g, branch in batch]
        tokens = torch.zeros(len(batch), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for b, ((g, branch), size) in enumerate(zip(batch, lengths, strict=True)):
            tokens[b, :size] = torch.tensor(trees[g].shared + branch.tokens)
            mask[b, :size] = 1
        inputs = {"attention_mask": mask}
        if decoder.takes_positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        states = decoder.states(
            tokens.to(decoder.device), **{k: v.to(decoder.device) for k, v in inputs.items()}
        )
        states_BLTD = torch.stack([s.float().cpu() for s in states], dim=1)
        for b, ((g, branch), size) in enumerate(zip(batch, lengths, strict=True)):
            state_LTD, offset = states_BLTD[b], len(trees[g].shared)
            gate[g] = state_LTD[:, trees[g].gate]
            last[i + b] = state_LTD[:, size - 1]
            mean[i + b] = state_LTD[:, offset + branch.start : offset + branch.stop].mean(1)
    return Features(gate, last, mean)


def comparison_trees(decoder: Decoder) -> list[TokenTree]:
    """Returns two small trees, with siblings that begin alike, to compare kinds of forward on."""
    vocabulary = int(decoder.config.vocab_size)
    draw = np.random.default_rng(0).integers(0, vocabulary, size=40).tolist()
    texts = (draw[10:18], draw[18:29], draw[29:31], draw[18:24] + draw[11:15])
    branches = tuple(Branch(tuple(text), 0, len(text)) for text in texts)
    return [
        TokenTree(tuple(draw[:10]), branches, gate=9),
        TokenTree(tuple(draw[31:36]), (Branch(tuple(draw[36:]), 1, 3),), gate=2),
    ]


def agrees_with(decoder: Decoder, plain: Features) -> bool:
    """Returns whether packed `comparison_trees` get the features `plain` of separate sequences.

    A model that ignores, rejects or cannot use a tree's mask (state-space layers, custom attention)
    is detected here, before anybody uses its scores.
    """
    bound = 1e-4 if decoder.dtype == torch.float32 else 5e-2
    try:
        packed = encode(decoder, comparison_trees(decoder))
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
        return False
    return all(
        bool((a - b).norm() <= bound * b.norm())
        for a, b in (
            (packed.gate_GLD, plain.gate_GLD),
            (packed.last_RLD, plain.last_RLD),
            (packed.mean_RLD, plain.mean_RLD),
        )
    )


def takes_tree_masks(decoder: Decoder) -> bool:
    """Returns whether packed trees are exact as the decoder is set (see `agrees_with`)."""
    if not decoder.takes_positions:
        return False
    plain = encode_plain(decoder, comparison_trees(decoder), batch_size=1)
    return agrees_with(decoder, plain)
