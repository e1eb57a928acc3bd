"""Samples of some prompts, decoded side by side; each prompt is computed and kept once.

Legend: `G` prompts, `N` samples of each, `B` = G N rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from panoply.config.policy import SamplingConfig
from panoply.hub.backbone.attention import tree_attention_forward
from panoply.model.sampling import choose_tokens
from panoply.model.shared_prefix import Layer, Prefix, attend_after_prefix

NAME = "panoply_prefix"


@dataclass(slots=True)
class Sampled:
    """One sample as tokens."""

    stream: int
    """Stream of its random numbers (`panoply.model.sampling.stream`)."""
    tokens: list[int] = field(default_factory=list[int])
    """Tokens of the response; the last one ends it where `ended`."""
    log_prob: float = 0.0
    """log pi(y | x), summed over the tokens, at temperature 1."""
    ended: bool = False
    """Whether the policy ended the response; else the limit did."""
    over: bool = False


class Decoding:
    """A grid of prompts and samples that takes a token at a time.

    The samples of a prompt stand together, so that their queries meet its keys in one product. So
    the grid stays rectangular: rows are dropped once every prompt has one that is over.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], streams: Sequence[Sequence[int]]
    ) -> None:
        """Runs the prompts, left-padded; see `Policy.sample` for the arguments."""
        self.model, self.step = model, 0
        self.samples = [[Sampled(name) for name in names] for names in streams]
        self.grid = [list(row) for row in self.samples]
        self.numbers = list(range(len(prompts)))
        """Prompts that still run."""
        self.response_cache = DynamicCache()
        self.sizes_G = torch.tensor([len(ids) for ids in prompts], device=model.device)
        longest = int(self.sizes_G.max())
        padded = [[0] * (longest - len(ids)) + list(ids) for ids in prompts]
        tokens_GP = torch.tensor(padded, device=model.device)
        places_GP = (
            torch.arange(longest, device=model.device)[None] - (longest - self.sizes_G)[:, None]
        )
        cache = DynamicCache()
        out = model(
            input_ids=tokens_GP,
            attention_mask=(places_GP >= 0).long(),
            position_ids=places_GP.clamp_min(0),
            past_key_values=cache,
            logits_to_keep=1,
        )
        kept: Any = cache.layers
        layers = tuple(Layer(layer.keys, layer.values) for layer in kept)
        self.prefix = Prefix(layers, places_GP < 0)
        self.logits_BV: Tensor = out.logits[:, -1].float().repeat_interleave(len(streams[0]), dim=0)
        self.tokens_B = self.logits_BV.argmax(-1)  # until some are drawn

    def choose(self, config: SamplingConfig, stops: Collection[int]) -> None:
        """Draws the next token of every row."""
        rows = [sampled for row in self.grid for sampled in row]
        names = [sampled.stream for sampled in rows]
        self.tokens_B, log_prob_B = choose_tokens(
            self.logits_BV, names, self.step, config.temperature, config.top_p
        )
        drawn = zip(rows, self.tokens_B.tolist(), log_prob_B.tolist(), strict=True)
        for sampled, token, log_prob in drawn:
            if sampled.over:
                continue
            sampled.tokens.append(token)
            sampled.log_prob += log_prob
            sampled.ended = token in stops
            sampled.over = sampled.ended or len(sampled.tokens) == config.max_tokens

    def shrink(self) -> list[int]:
        """Drops finished samples; returns the prompts all of whose samples are finished."""
        left = [sum(not sampled.over for sampled in row) for row in self.grid]
        width, new_width = len(self.grid[0]), max(left)
        kept = [i for i, count in enumerate(left) if count]
        finished = [self.numbers[i] for i, count in enumerate(left) if not count]
        if new_width < width or finished:
            rows: list[int] = []
            grid: list[list[Sampled]] = []
            for i in kept:
                # Stable: samples that run come first, in their order.
                order = sorted(range(width), key=lambda n, i=i: self.grid[i][n].over)[:new_width]
                rows += [i * width + n for n in order]
                grid.append([self.grid[i][n] for n in order])
            at = torch.tensor(rows, dtype=torch.long, device=self.tokens_B.device)
            self.response_cache.batch_select_indices(at)
            self.tokens_B = self.tokens_B[at]
            self.grid = grid
        if finished:
            groups = torch.tensor(kept, dtype=torch.long, device=self.sizes_G.device)
            self.prefix, self.sizes_G = self.prefix.at(groups), self.sizes_G[groups]
            self.numbers = [self.numbers[i] for i in kept]
        return finished

    def advance(self) -> None:
        """Runs the model on the tokens that were drawn."""
        positions_B = (self.sizes_G + self.step).repeat_interleave(len(self.grid[0]))
        out = self.model(
            input_ids=self.tokens_B[:, None],
            # Models hand a 4-D mask on as it is: this one keeps them from making one.
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.tokens_B.device),
            position_ids=positions_B[:, None],
            past_key_values=self.response_cache,
            prefix=self.prefix,
        )
        self.logits_BV = out.logits[:, -1].float()
        self.step += 1


def decode_after_prefixes(model: Any) -> None:
    """Sets a causal model's attention to take a `prefix`.

    Raises:
        ValueError, TypeError, AttributeError: its attention is not exchangeable.
    """
    AttentionInterface.register(NAME, prefix_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def prefix_attention_forward(
    module: Any,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends after prefixes where there are any, else as transformers does."""
    if prefix is None:
        return tree_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, **kwargs
        )
    states_BHTD = attend_after_prefix(
        query_BHTD,
        key_BKTD,
        value_BKTD,
        prefix.layers[module.layer_idx],
        prefix.is_padding_GP,
        scale=kwargs.get("scaling"),
        softcap=kwargs.get("softcap"),
    )
    return states_BHTD.transpose(1, 2), None
