"""Dense additive tree masks, for models whose attention takes no tree plan.

Any Hugging Face decoder that takes a 4-D mask works with them as it is, at a cost of T x T.

Legend: `B` rows of one forward, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panoply.model.layout import TreeLayout, ancestry


def tree_mask(layout: TreeLayout) -> Tensor:
    """Returns which keys (columns) each query (row) of a row of trees sees, bool `[T, T]`.

    Query q sees key k if k's segment is on the path of q's, and k does not come after q.
    """
    segment_T = layout.segment_T
    return torch.from_numpy(ancestry(layout)[segment_T][:, segment_T]).tril()


def _window(config: Any) -> int | None:
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def attention_masks(layouts: Sequence[TreeLayout], config: Any, dtype: torch.dtype) -> Any:
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
