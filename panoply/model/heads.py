"""Several heads on one backbone: ensembles, or arms that share everything below the head.

Legend: `R` responses, `L` depths, `D` hidden size, `O` outputs of a head, `N` of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from panoply.model.forward import Features


@dataclass(frozen=True, slots=True)
class LinearHead:
    """s = W f + b on one of the pooled states."""

    weight_OD: Tensor
    bias_O: Tensor | None = None
    pooling: Literal["last", "mean_response"] = "last"
    level: int = -1
    """Which of the backbone's depths, by its place in their list."""


class StackedHeads(nn.Module):
    """Heads that read the features of one forward; those that read the same state are one matmul.

    Their parameters are the rows of one matrix per state, so an ensemble costs what one head costs.
    """

    def __init__(self, heads: Sequence[LinearHead]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("stacked heads need at least one head, got none")
        self.reads: dict[tuple[str, int], list[int]] = {}
        for i, head in enumerate(heads):
            self.reads.setdefault((head.pooling, head.level), []).append(i)
        self.sizes = [len(head.weight_OD) for head in heads]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for members in self.reads.values():
            self.weights.append(torch.cat([heads[i].weight_OD for i in members]))
            self.biases.append(torch.cat([_bias(heads[i]) for i in members]))

    def forward(self, features: Features) -> list[Tensor]:
        """Returns the outputs `[R, O]` of each head, in the order they were given."""
        found: dict[int, Tensor] = {}
        reads = zip(self.reads.items(), self.weights, self.biases, strict=True)
        for ((pooling, level), members), weight_ND, bias_N in reads:
            states_RLD = features.last_RLD if pooling == "last" else features.mean_RLD
            out_RN = states_RLD[:, level] @ weight_ND.T + bias_N
            parts = out_RN.split([self.sizes[i] for i in members], dim=1)
            found |= dict(zip(members, parts, strict=True))
        return [found[i] for i in range(len(self.sizes))]


def _bias(head: LinearHead) -> Tensor:
    return head.weight_OD.new_zeros(len(head.weight_OD)) if head.bias_O is None else head.bias_O
