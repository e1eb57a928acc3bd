"""Attention of samples that share prompts: a prompt's keys are stored and read once.

Legend: `G` prompts, `N` samples of each, `B` = G N rows, `H` query heads, `K` key heads, `P` tokens
of a prompt, `T` tokens of a sample so far, `D` head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class PrefixLayer(NamedTuple):
    """Keys and values of the prompts in one layer."""

    key_GKPD: Tensor
    value_GKPD: Tensor


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of the prompts in every layer, left-padded to one length."""

    layers: tuple[PrefixLayer, ...]
    is_padding_GP: Tensor

    def at(self, groups: Tensor) -> Prefix:
        """Returns the prefixes of some of the prompts."""
        layers = tuple(PrefixLayer(key[groups], value[groups]) for key, value in self.layers)
        return Prefix(layers, self.is_padding_GP[groups])


def attend_after_prefix(
    query_BH1D: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    layer: PrefixLayer,
    is_padding_GP: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Returns the attention `[B, H, 1, D]` of each sample's newest token.

        o = sum_k softmax_k( c tanh(s q . k / c) ) v_k      over the prompt and the sample so far

    The queries of all samples of a prompt meet its keys in one product.

    Args:
        query_BH1D: queries, after rotation; the rows of a prompt are consecutive.
        key_BKTD: keys of the samples, the newest token included; H is a multiple of K.
        value_BKTD: values of the samples.
        layer: keys and values of the prompts.
        is_padding_GP: tokens of the prompts that are padding.
        scale: s, by default 1 / sqrt(D).
        softcap: c, where the model caps its scores; None leaves them as they are.
    """
    num_rows, num_heads, _, size = query_BH1D.shape
    num_prompts, num_keys, length, _ = layer.key_GKPD.shape
    each, grouped = num_rows // num_prompts, num_heads // num_keys
    query_BKRD = query_BH1D.reshape(num_rows, num_keys, grouped, size)
    query_BKRD = query_BKRD * (size**-0.5 if scale is None else scale)

    def by_prompt(rows: Tensor) -> Tensor:
        """[B, K, R, ...] -> [G, K, N R, ...]."""
        split = rows.reshape(num_prompts, each, num_keys, grouped, -1).transpose(1, 2)
        return split.reshape(num_prompts, num_keys, each * grouped, -1)

    def by_row(grouped_rows: Tensor) -> Tensor:
        """[G, K, N R, ...] -> [B, K, R, ...]."""
        split = grouped_rows.reshape(num_prompts, num_keys, each, grouped, -1).transpose(1, 2)
        return split.reshape(num_rows, num_keys, grouped, -1)

    prompt_BKRP = by_row(by_prompt(query_BKRD) @ layer.key_GKPD.transpose(2, 3))
    scores = torch.cat([prompt_BKRP, query_BKRD @ key_BKTD.transpose(2, 3)], dim=-1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden_BP = is_padding_GP.repeat_interleave(each, dim=0)[:, None, None]
    scores[..., :length].masked_fill_(hidden_BP, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(value_BKTD.dtype)
    from_prompt = by_row(by_prompt(weights[..., :length]) @ layer.value_GKPD)
    out_BKRD = from_prompt + weights[..., length:] @ value_BKTD
    return out_BKRD.reshape(num_rows, num_heads, 1, -1)
