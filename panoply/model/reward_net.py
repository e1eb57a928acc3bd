"""A decoder that is trained, with linear heads on its last state and, where asked, its LM head.

Legend: `R` responses, `D` hidden size, `K` heads, `T` tokens of a row, `V` vocabulary, `N` tokens
of responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from panoply.model.decoder import Decoder
from panoply.model.forward import row_states
from panoply.model.layout import TreeLayout
from panoply.model.tree import TokenTree

CHUNK = 512
"""Tokens whose logits over the vocabulary are held at once."""


class RewardOutput(NamedTuple):
    """What one forward says of the responses of some trees, tree by tree."""

    features_RD: Tensor
    """State at the last token of each render, float32."""
    scores_RK: Tensor
    log_prob_R: Tensor | None
    """log pi(y | x), summed over the response's tokens; None without a language-model head."""
    num_tokens_R: Tensor


class RewardNet(nn.Module):
    """Scores, and log-probabilities where `lm_head` is given, of trees that run side by side.

    Everything that reads a weight happens inside `forward`, as FSDP needs it.
    """

    def __init__(
        self, decoder: Decoder | None, head: nn.Linear, lm_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.model = decoder.model if decoder else None
        self.head = head
        self.lm_head = lm_head

    def forward(
        self,
        trees: Sequence[TokenTree],
        inputs: Sequence[Tensor | None] | None = None,
        *,
        policy: bool = True,
    ) -> RewardOutput:
        """Runs trees side by side in one row.

        Args:
            trees: prompts with their responses.
            inputs: `[T, D]` of each tree, what goes into the first layer that is kept here; None
                embeds the tokens. Without a decoder: `[R, D]`, the features themselves.
            policy: with log-probabilities, where there is a language-model head.
        """
        if self.decoder is None:
            kept = torch.cat([x for x in inputs or () if x is not None])
            features_RD = kept.to(self.head.weight.device).float()
            counts_R = torch.zeros(len(features_RD), dtype=torch.long, device=features_RD.device)
            return RewardOutput(features_RD, score(self.head, features_RD), None, counts_R)
        states_TD, layout = row_states(self.decoder, trees, inputs)
        features_RD = states_TD[torch.from_numpy(layout.last_R).to(states_TD.device)].float()
        scores_RK = score(self.head, features_RD)
        counts_R = torch.tensor(
            [len(own) for own in layout.completion_tokens_R], device=states_TD.device
        )
        log_prob_R = None
        if self.lm_head is not None and policy:
            log_prob_R = response_log_probs(self.lm_head, states_TD, layout)
        return RewardOutput(features_RD, scores_RK, log_prob_R, counts_R)


def score(head: nn.Linear, features_RD: Tensor) -> Tensor:
    """Returns `[R, K]` scores, float32 whatever the backbone computes in."""
    with torch.autocast(features_RD.device.type, enabled=False):
        return head(features_RD)


def response_log_probs(lm_head: nn.Module, states_TD: Tensor, layout: TreeLayout) -> Tensor:
    """Returns the log-probability of each response given its prompt, `[R]` float32.

        log pi(y | x) = sum_t log softmax( W h_{t-1} )[y_t]

    over the response's own tokens and the one that ends its turn. h_{t-1} is the state of the token
    before in the tree, which for the first token of a branch lies in the segment it grows from.
    """
    device = states_TD.device
    places_N = np.concatenate(layout.completion_tokens_R)
    owner_N = np.repeat(
        np.arange(len(layout.completion_tokens_R)), [len(own) for own in layout.completion_tokens_R]
    )
    before_N = torch.from_numpy(layout.before_T[places_N]).to(device)
    targets_N = torch.from_numpy(layout.tokens_T[places_N]).to(device)
    parts: list[Tensor] = []
    for i in range(0, len(places_N), CHUNK):
        chunk = states_TD[before_N[i : i + CHUNK]], targets_N[i : i + CHUNK]
        # Logits are large and cheap: they are made again in the backward pass.
        found = checkpoint(_token_log_probs, lm_head, *chunk, use_reentrant=False)
        parts.append(found)  # pyright: ignore[reportArgumentType]
    out_R = torch.zeros(len(layout.completion_tokens_R), device=device)
    return out_R.index_add(0, torch.from_numpy(owner_N).to(device), torch.cat(parts))


def _token_log_probs(lm_head: nn.Module, states_ND: Tensor, targets_N: Tensor) -> Tensor:
    return -cross_entropy(lm_head(states_ND).float(), targets_N, reduction="none")
