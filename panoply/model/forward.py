"""The shared-prefix forward: rows of token trees through a frozen decoder, features out.

Legend: `B` rows of one forward, `T` tokens of a row, `R` responses, `G` trees (prompts), `L`
depths, `D` hidden size.

A dense tree mask goes through the model's own attention (SDPA), so any Hugging Face decoder that
takes a 4-D mask works as it is. Models that do not take one (checked once, on numbers, by
`takes_tree_masks`) are run on plain right-padded batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from panoply.model.tree import Branch, Layout, Row, TokenTree, lay_out, pack

FINAL_NORMS = (
    "norm",
    "final_layer_norm",
    "final_layernorm",
    "final_norm",
    "norm_f",
    "ln_f",
    "ln_out",
    "embedding_norm",
)
"""What Hugging Face decoders call the norm after their last layer."""


@dataclass(frozen=True, slots=True)
class Features:
    """Pooled hidden states of a list of trees, float32, in the order of the trees."""

    gate_GLD: Tensor
    """State at the gate position of each prompt."""
    last_RLD: Tensor
    """State at the last token of each render; responses tree by tree."""
    mean_RLD: Tensor
    """Mean state over each response's own tokens."""


class Decoder:
    """A Hugging Face decoder stack without its language-model head, cut to a number of layers.

    `depths` count layers from the bottom; the state at depth d is the output of layer d passed
    through the model's final norm, which is what a backbone cut to d layers returns.
    """

    def __init__(self, model: nn.Module, depths: Sequence[int]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = cast(Any, model.config)
        self.depths = tuple(depths)
        name = find_layers(model)
        found = len(cast(nn.ModuleList, model.get_submodule(name)))
        if not depths or min(depths) < 1 or max(depths) > found:
            raise ValueError(f"depths {depths!r} must lie in 1..{found}")
        cut(model, max(depths))
        # After the cut: a reference to the full list would keep the dropped layers in memory.
        self.layers = cast(nn.ModuleList, model.get_submodule(name))
        self.norm = find_norm(model)
        # Recurrent and ALiBi models know no positions: right padding keeps theirs right.
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the forward computes in."""
        return next(self.model.parameters()).dtype

    def states(self, tokens_BT: Tensor, **inputs: Any) -> list[Tensor]:
        """Returns the normed hidden states `[B, T, D]` at each depth."""
        caught: dict[int, Tensor] = {}
        with _catching(self.layers, self.depths, caught):
            out = self.model(input_ids=tokens_BT, use_cache=False, **inputs)
        top = len(self.layers)
        return [
            out.last_hidden_state if depth == top else self.norm(caught[depth])
            for depth in self.depths
        ]


@contextmanager
def _catching(
    layers: nn.ModuleList, depths: Sequence[int], caught: dict[int, Tensor]
) -> Generator[None]:
    """Stores the outputs of the layers at `depths` while the context is open."""

    def keep(depth: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            caught[depth] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[d - 1].register_forward_hook(keep(d)) for d in depths if d < len(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module) -> str:
    """Returns the name of the list of decoder layers.

    Raises:
        ValueError: the model has no such list.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no list of {count} decoder layers; "
            "a decoder-only Hugging Face model is needed"
        )
    return min(names, key=len)


def find_norm(model: nn.Module) -> nn.Module:
    """Returns the norm that the stack applies after its last layer: a sibling of the layers.

    Raises:
        ValueError: the model has no such norm.
    """
    stack = dict(model.get_submodule(find_layers(model).rpartition(".")[0]).named_children())
    for name in FINAL_NORMS:
        if name in stack:
            return stack[name]
    raise ValueError(
        f"no final norm found in {type(model).__name__}: {list(stack)}, expected one of "
        f"{FINAL_NORMS}"
    )


def cut(model: nn.Module, num_layers: int) -> None:
    """Keeps the first `num_layers` layers of a decoder stack, in place."""
    name = find_layers(model)
    kept = cast(nn.ModuleList, model.get_submodule(name))[:num_layers]
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, kept)
    config = cast(Any, model.config)
    if getattr(config, "layer_types", None):
        # Some configurations derive the types from the number of layers.
        with suppress(AttributeError):
            config.layer_types = list(config.layer_types[:num_layers])
    config.num_hidden_layers = num_layers


def tree_mask(layout: Layout) -> Tensor:
    """Returns who sees whom in a row, bool `[T, T]`.

    Query q sees key k if both are in one tree, k is not behind q, and k is shared or in q's
    branch.
    """
    tree_T, branch_T = torch.from_numpy(layout.tree_T), torch.from_numpy(layout.branch_T)
    order_T = torch.arange(len(tree_T))
    same_tree = tree_T[:, None] == tree_T[None, :]
    ancestor = (branch_T[None, :] == -1) | (branch_T[:, None] == branch_T[None, :])
    return same_tree & ancestor & (order_T[:, None] >= order_T[None, :])


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def attention_masks(layouts: Sequence[Layout], config: Any, dtype: torch.dtype) -> Any:
    """Returns the additive tree mask `[B, 1, T, T]`, per layer type where a model mixes types.

    Padded positions see themselves only, so that no softmax is over an empty set. Sliding
    windows are measured in positions, as in separate sequences.
    """
    width = max(len(layout.tokens_T) for layout in layouts)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(layouts), 1, 1)
    near = seen.clone()
    window = _window(config)
    for i, layout in enumerate(layouts):
        size = len(layout.tokens_T)
        seen[i, :size, :size] = tree_mask(layout)
        if window is not None:
            positions_T = torch.from_numpy(layout.positions_T)
            close = positions_T[:, None] - positions_T[None, :] < window
            near[i, :size, :size] = seen[i, :size, :size] & close

    def additive(allowed: Tensor) -> Tensor:
        zeros = torch.zeros(allowed.shape, dtype=dtype)
        return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    types = set(getattr(config, "layer_types", None) or ())
    if len(types) > 1 or types - {"full_attention", "sliding_attention"}:
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}
    everywhere = window is not None and types != {"full_attention"}
    return additive(near if everywhere else seen)


@torch.no_grad()
def forward_rows(decoder: Decoder, rows: Sequence[Row]) -> list[Features]:
    """Runs rows in one forward and pools them; one `Features` per row.

    Args:
        decoder: the frozen stack.
        rows: packed trees; padded to the longest.
    """
    layouts = [lay_out(row) for row in rows]
    width = max(len(layout.tokens_T) for layout in layouts)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.long)
    positions_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for i, layout in enumerate(layouts):
        tokens_BT[i, : len(layout.tokens_T)] = torch.from_numpy(layout.tokens_T)
        positions_BT[i, : len(layout.tokens_T)] = torch.from_numpy(layout.positions_T)
    masks = attention_masks(layouts, decoder.config, decoder.dtype)
    device = decoder.device
    if isinstance(masks, dict):
        masks = {name: mask.to(device) for name, mask in masks.items()}
    else:
        masks = masks.to(device)
    states = decoder.states(
        tokens_BT.to(device), position_ids=positions_BT.to(device), attention_mask=masks
    )
    return [_pool([s[i] for s in states], layout) for i, layout in enumerate(layouts)]


def _pool(states_TD: Sequence[Tensor], layout: Layout) -> Features:
    """Reads gate, last and mean states of one row at every depth."""
    spans = layout.spans_R3
    states_LTD = torch.stack([s.float() for s in states_TD])
    # A sum per branch as one product: faster and more exact than differences of running sums.
    share_RT = np.zeros((len(spans), states_LTD.shape[1]), dtype=np.float32)
    for r, (start, stop, _) in enumerate(spans):
        share_RT[r, start:stop] = 1.0 / (stop - start)
    mean = torch.from_numpy(share_RT).to(states_LTD.device) @ states_LTD
    last = states_LTD[:, torch.from_numpy(spans[:, 2])]
    gate = states_LTD[:, torch.from_numpy(layout.gates_G)]
    return Features(*(x.transpose(0, 1).contiguous().cpu() for x in (gate, last, mean)))


def encode(
    decoder: Decoder, trees: Sequence[TokenTree], *, budget: int = 1024, rows_per_forward: int = 1
) -> Features:
    """Features of every prompt and response of `trees`, by the shared-prefix forward.

    Args:
        decoder: the frozen stack.
        trees: prompts with their responses.
        budget: most tokens in a row. Small rows stay in a CPU's cache.
        rows_per_forward: rows in one forward; 1 suits a CPU, more fill an accelerator.
    """
    rows = iter(pack(trees, budget))
    num_responses = sum(len(tree.branches) for tree in trees)
    shape = (len(decoder.depths), decoder.hidden_size)
    gate = torch.empty(len(trees), *shape)
    last, mean = torch.empty(num_responses, *shape), torch.empty(num_responses, *shape)
    first = np.cumsum([0, *(len(tree.branches) for tree in trees)])
    while batch := list(islice(rows, rows_per_forward)):
        for row, found in zip(batch, forward_rows(decoder, batch), strict=True):
            place = [int(first[leaf.tree]) + leaf.branch for tree in row.leaves for leaf in tree]
            gate[[leaves[0].tree for leaves in row.leaves]] = found.gate_GLD
            last[place], mean[place] = found.last_RLD, found.mean_RLD
    return Features(gate, last, mean)


@torch.no_grad()
def encode_plain(decoder: Decoder, trees: Sequence[TokenTree], *, batch_size: int = 8) -> Features:
    """The same features from separate, right-padded sequences: the reference and the fallback."""
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


def takes_tree_masks(decoder: Decoder, *, tolerance: float | None = None) -> bool:
    """Whether the model gives a packed tree the features of separate sequences.

    Checked on numbers with a small tree: a model that ignores, rejects or cannot use a 4-D mask
    (state-space layers, custom attention) is found out here and not by its users.
    """
    vocabulary = int(decoder.config.vocab_size)
    draw = np.random.default_rng(0).integers(0, vocabulary, size=40).tolist()
    branches = tuple(Branch(tuple(draw[a:b]), 0, b - a) for a, b in ((10, 18), (18, 29), (29, 31)))
    trees = [
        TokenTree(tuple(draw[:10]), branches, gate=9),
        TokenTree(tuple(draw[31:36]), (Branch(tuple(draw[36:]), 1, 3),), gate=2),
    ]
    if not decoder.takes_positions:
        return False
    bound = tolerance or (1e-4 if decoder.dtype == torch.float32 else 5e-2)
    plain = encode_plain(decoder, trees, batch_size=1)
    try:
        packed = encode(decoder, trees)
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
