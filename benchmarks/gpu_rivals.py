"""What trees are measured against on a GPU: the same weights on separate sequences.

`Padded` runs transformers with torch's SDPA on batches of like lengths, `Varlen` runs all sequences
end to end with FlashAttention for varying lengths, so that nothing is padded and nothing shared.
`plain_step` trains as TRL does: chosen and rejected in one padded batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from benchmarks.tree_baselines import Batches, Sequences
from panoply.model.decoder import Decoder

VARLEN = "benchmark_varlen"


class Padded:
    """The model on right-padded batches, causal and without a mask.

    No token sees the padding to its right, so the last states are right without one.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    @torch.no_grad()
    def run(self, batches: Batches) -> list[Tensor]:
        """Returns the last states of every batch, on the CPU as `encode` does."""
        with attention(self.decoder, "sdpa"):
            return [last_states(self.decoder, batch).float().cpu() for batch in batches]


class Varlen:
    """The model on sequences end to end, by torch's FlashAttention for varying lengths."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        AttentionInterface.register(VARLEN, varlen_forward)
        AttentionMaskInterface.register(VARLEN, sdpa_mask)

    @torch.no_grad()
    def run(self, batches: Batches) -> list[Tensor]:
        """Returns the last states of every batch, each run as one row."""
        with attention(self.decoder, VARLEN):
            return [self._last_states(batch).float().cpu() for batch in batches]

    def _last_states(self, batch: Sequences) -> Tensor:
        device = self.decoder.device
        sizes = torch.tensor([len(sequence) for sequence in batch], dtype=torch.int32)
        ends = torch.cat([torch.zeros(1, dtype=torch.int32), sizes.cumsum(0, dtype=torch.int32)])
        tokens = torch.cat([torch.tensor(sequence) for sequence in batch])
        positions = torch.cat([torch.arange(len(sequence)) for sequence in batch])
        states = self.decoder.model(
            input_ids=tokens[None].to(device),
            position_ids=positions[None].to(device),
            # Models hand a 4-D mask on as it is: this one keeps them from making one.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            use_cache=False,
            ends=ends.to(device),
            longest=int(sizes.max()),
        ).last_hidden_state
        return states[0, (ends[1:].long() - 1).to(device)]


def varlen_forward(
    _module: Any,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    _mask: Tensor | None,
    *,
    ends: Tensor,
    longest: int,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes the attention of a row in which sequences end at `ends`."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD))
    out: Any = varlen_attn(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        scale=kwargs.get("scaling"),
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return out[None], None


@contextmanager
def attention(decoder: Decoder, name: str) -> Generator[None]:
    """Runs a model with another of transformers' attentions while the context is open."""
    model: Any = decoder.model
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def last_states(decoder: Decoder, batch: Sequences) -> Tensor:
    """Returns the states `[B, D]` at the last token of right-padded sequences."""
    ends = torch.tensor([len(sequence) - 1 for sequence in batch])
    tokens = torch.zeros(len(batch), int(ends.max()) + 1, dtype=torch.long)
    for i, sequence in enumerate(batch):
        tokens[i, : len(sequence)] = torch.tensor(sequence)
    states = decoder.model(input_ids=tokens.to(decoder.device), use_cache=False).last_hidden_state
    return states[torch.arange(len(batch)), ends.to(decoder.device)]


def plain_step(
    decoder: Decoder, head: nn.Linear, pairs: Sequence[Sequences], pairs_per_batch: int
) -> float:
    """Sets the gradients of Bradley-Terry on pairs, chosen first; returns the loss.

    Args:
        decoder: the trained stack.
        head: one score.
        pairs: the two sequences of each pair.
        pairs_per_batch: pairs that are padded together and run at once.
    """
    decoder.model.zero_grad()
    head.zero_grad()
    total = 0.0
    with attention(decoder, "sdpa"):
        for i in range(0, len(pairs), pairs_per_batch):
            batch = pairs[i : i + pairs_per_batch]
            sequences = [pair[side] for side in (0, 1) for pair in batch]
            states = last_states(decoder, sequences).float()
            with torch.autocast(states.device.type, enabled=False):
                chosen, rejected = head(states)[:, 0].chunk(2)
            loss = -logsigmoid(chosen - rejected).sum() / len(pairs)
            loss.backward()
            total += float(loss.detach())
    return total
