"""Attention by trees as one kernel call a layer and row: FlexAttention, on a GPU.

Segments of a row stand in preorder (`panoply.model.layout`), so what grows from a segment follows
it without a gap. A query at place q sees a key at place k if

    k <= q < end(k)    and, in a sliding window w,    position(q) - position(k) < w

with end(k) the place behind the last token that grows from k's segment. That is one number a token,
and blocks of 128 x 128 scores are told apart by the least and the greatest number in each: no
matrix over pairs of tokens is ever made. Blocks without a visible pair are skipped (all of them,
without a window), and those that are visible throughout are computed without a look at the mask.

Rows are padded to whole blocks, and to two of them at least, with a tree of its own that nothing
else sees (`pad_row`). The kernel is compiled with shapes that change: torch compiles it once for
the first length, once more for all others, again for another window, cap, scale, head size, type or
mode of gradients, and never again. Without padding, rows of one block would be one more case, and
rows under 128 tokens would get a kernel made for decoding.

Legend: `H` query heads, `K` key heads, `T` tokens of a row, `D` head size, `N` blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from panoply.model.attention import AttentionPlan, make_plan
from panoply.model.decoder import Kernel
from panoply.model.layout import TreeLayout, pad_row

BLOCK = 128
"""Queries and keys of a block of scores."""
LEAST_ROW = 2 * BLOCK
HEAD_SIZES = range(16, 257)
"""Sizes of a head that the kernel has a shape for: tensor cores multiply 16 columns at least."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_VARIANTS = 64
"""Compilations in a process before another one is an error: two for each kind of layer. Torch's own
8 are too few for a server of several models, and beyond them it would stop compiling in silence."""
VARIABLE = "PANOPLY_ATTENTION"
"""Environment variable that chooses the kernel of tree attention, for the machines where the choice
by device is wrong."""

Attend: TypeAlias = Callable[..., Tensor]
"""`_one_call`, compiled or not."""


class KernelError(Exception):
    """Says that the kernel of attention cannot be compiled here.

    It is no RuntimeError: what looks for a model's fitting attention by trying must not pass it by.
    """


def choose_kernel(device: torch.device) -> Kernel:
    """Returns the kernel of tree attention on a device: 'flex' on CUDA, else 'calls'.

    Raises:
        ValueError: the environment names one that does not exist.
    """
    match os.environ.get(VARIABLE, ""):
        case "":
            return "flex" if device.type == "cuda" else "calls"
        case "flex" | "calls" as chosen:
            return chosen
        case unknown:
            raise ValueError(
                f"{VARIABLE}={unknown!r} names no attention: set it to 'flex' (one kernel call a "
                "layer) or 'calls' (one for each family of siblings), or unset it"
            )


@dataclass(frozen=True)
class FlexPlan:
    """Tells what each token of a padded row sees; all layers of a forward share it."""

    layout: TreeLayout
    ends_T: Tensor
    positions_T: Tensor
    attend: Attend
    masks: dict[int | None, BlockMask] = field(default_factory=dict)
    """Block masks by window."""

    @cached_property
    def calls(self) -> AttentionPlan:
        """Calls for layers that the kernel does not take."""
        return make_plan(self.layout)

    def mask(self, window: int | None) -> BlockMask:
        """Returns the blocks that are computed, and the rule inside of them."""
        if window not in self.masks:
            self.masks[window] = _block_mask(self.ends_T, self.positions_T, window)
        return self.masks[window]


def make_flex_plan(
    layout: TreeLayout, device: torch.device, attend: Attend | None = None
) -> FlexPlan:
    """Returns the plan of a row that `pad_flex_row` padded.

    Args:
        layout: the padded row.
        device: of the model.
        attend: the kernel; by default compiled on CUDA, and elsewhere plain operations over all
            pairs of tokens, which are exact and slow.
    """
    if attend is None:
        attend = compiled() if device.type == "cuda" else _one_call
    numbers = (layout.ends_T, layout.positions_T)
    ends_T, positions_T = (torch.from_numpy(x.astype("int32")).to(device) for x in numbers)
    return FlexPlan(layout, ends_T, positions_T, attend)


def pad_flex_row(layout: TreeLayout) -> TreeLayout:
    """Pads a row to whole blocks, two at least."""
    size = max(LEAST_ROW, -(-len(layout.tokens_T) // BLOCK) * BLOCK)
    return pad_row(layout, size)


def takes_flex(query_1HTD: Tensor, value_1KTD: Tensor, dropout: float) -> bool:
    """Returns whether the kernel computes a layer: it drops nothing and has sizes of its own."""
    sizes = (query_1HTD.shape[-1], value_1KTD.shape[-1])
    fits = all(size in HEAD_SIZES for size in sizes)
    return fits and not dropout and query_1HTD.dtype in DTYPES


def flex_tree_attention(
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    plan: FlexPlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Returns what `tree_attention` returns, `[1, T, H, D]`, from one kernel call.

    Arguments as there. Training on a CPU is not possible: torch has no gradient of it there.

    Raises:
        KernelError: it does not compile on this machine.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    device = query_1HTD.device
    score_mod = None if softcap is None else _capped(softcap)
    states = [_as_autocast(x) for x in (query_1HTD, key_1KTD, value_1KTD)]
    try:
        # The types are settled: autocast knows the kernel's forward alone, not its gradient.
        with torch.autocast(device.type, enabled=False):
            out_1HTD = plan.attend(*states, score_mod, plan.mask(window), scale)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        paragraph = str(error.__cause__ or error).strip().partition("\n\n")[0]
        reason = " ".join(paragraph.split()).removesuffix(".")
        raise KernelError(
            f"FlexAttention does not compile on {name} with torch {torch.__version__}: {reason}. "
            f"Triton needs a C compiler (`cc`); {VARIABLE}=calls computes the same "
            "attention without it, in more kernel calls"
        ) from error
    return out_1HTD.transpose(1, 2).contiguous()


def _as_autocast(x: Tensor) -> Tensor:
    """Casts as autocast does for torch's own attention; rotation leaves queries in float32."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


@cache
def compiled(backend: Any = "inductor") -> Attend:
    """Returns the kernel for rows of any length, compiled at its first calls."""
    import torch._dynamo.config

    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_VARIANTS)
    return torch.compile(_one_call, fullgraph=True, backend=backend)


def _one_call(
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    score_mod: Any,
    mask: BlockMask,
    scale: float | None,
) -> Tensor:
    return flex_attention(
        query_1HTD,
        key_1KTD,
        value_1KTD,
        score_mod=score_mod,
        block_mask=mask,
        scale=scale,
        enable_gqa=True,
    )


def _capped(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _block_mask(ends_T: Tensor, positions_T: Tensor, window: int | None) -> BlockMask:
    """Returns the block mask of a row, on its device and without waiting for it."""
    reach = window or 0

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < ends_T[k])

    def sees_near(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < ends_T[k]) & (positions_T[q] - positions_T[k] < reach)

    ends_NB, positions_NB = ends_T.view(-1, BLOCK), positions_T.view(-1, BLOCK)
    num_blocks, num_tokens = len(ends_NB), len(ends_T)
    block_N = torch.arange(num_blocks, device=ends_T.device)
    # Rows are blocks of queries, columns of keys. Blocks on the diagonal are never whole.
    after_NN = block_N[:, None] > block_N
    some_NN = after_NN & (block_N[:, None] * BLOCK < ends_NB.amax(1))
    whole_NN = after_NN & (block_N[:, None] * BLOCK + BLOCK <= ends_NB.amin(1))
    if window is not None:
        some_NN &= positions_NB.amin(1)[:, None] - positions_NB.amax(1) < window
        whole_NN &= positions_NB.amax(1)[:, None] - positions_NB.amin(1) < window
    partly_NN = (some_NN & ~whole_NN) | (block_N[:, None] == block_N)
    return BlockMask.from_kv_blocks(
        *_ordered(partly_NN),
        *_ordered(whole_NN),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if window is None else sees_near,
        seq_lengths=(num_tokens, num_tokens),
    )


def _ordered(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the number of key blocks of each query block, and their numbers before the rest."""
    numbers_NN = torch.argsort(blocks_NN.int(), dim=1, descending=True, stable=True)
    return blocks_NN.sum(1).int()[None, None], numbers_NN.int()[None, None]
