"""The gated multi-objective head on pooled features: objectives, length penalty, gate, score.

Legend: `B` responses, `O` objectives, `F` response features, `D` gate features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from panoply.model.gate import Gate


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Predictions, weights and scores of a batch of responses."""

    values_BO: Tensor
    """r: predicted objectives, in the unit scale of their rating maps."""
    length_B: Tensor
    """r_v: predicted log length."""
    weights_BO: Tensor
    """g(x): the gate's weights times its scale."""
    score_B: Tensor
    """R(x, y)."""

    def rows(self) -> list[ModelOutput]:
        """Returns each response by itself, as a batch of one."""
        parts = (x.split(1) for x in (self.values_BO, self.length_B, self.weights_BO, self.score_B))
        return [ModelOutput(*row) for row in zip(*parts, strict=True)]


class GatedHead(nn.Module):
    """ArmoRM's reward on top of a frozen backbone (arXiv 2406.12845, sections 3.1 and 3.2).

        R(x, y) = sum_i g_i(x) r'_i,   r'_i = r_i / u_i - lambda_i r_v,   r_i = w_i . f(x, y) + b_i

    u_i is the deviation of the ratings of objective i, so that weights of binary and of ten-point
    ratings mean the same. Everything that training used is a buffer here, so what is served is
    what was trained.
    """

    weight: Tensor
    bias: Tensor
    length_weight: Tensor
    length_bias: Tensor
    unit: Tensor
    penalty: Tensor
    center: Tensor

    def __init__(self, num_objectives: int, size: int, gate: Gate) -> None:
        super().__init__()
        for name, shape in (
            ("weight", (num_objectives, size)),
            ("bias", (num_objectives,)),
            ("length_weight", (size,)),
            ("length_bias", ()),
            ("unit", (num_objectives,)),
            ("penalty", (num_objectives,)),
            ("center", (num_objectives,)),
        ):
            self.register_buffer(name, torch.zeros(shape))
        self.gate = gate

    def forward(self, features_BF: Tensor, gate_BD: Tensor) -> ModelOutput:
        """Scores responses from their features and those of their prompts."""
        values_BO = features_BF @ self.weight.T + self.bias
        length_B = features_BF @ self.length_weight + self.length_bias
        weights_BO = self.gate(gate_BD)
        score_B = (weights_BO * self.debiased(values_BO, length_B)).sum(-1)
        return ModelOutput(values_BO, length_B, weights_BO, score_B)

    def weighed(self, scored: ModelOutput, weights_O: Sequence[float]) -> ModelOutput:
        """Returns what the head would have said had the gate given these weights."""
        weights_BO = torch.tensor(weights_O).expand_as(scored.weights_BO)
        score_B = (weights_BO * self.debiased(scored.values_BO, scored.length_B)).sum(-1)
        return replace(scored, weights_BO=weights_BO, score_B=score_B)

    def debiased(self, values_BO: Tensor, length_B: Tensor) -> Tensor:
        """Returns r' `[B, O]`."""
        return values_BO / self.unit - length_B[:, None] * self.penalty

    def coefficients(self, weights_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c(x) on the raw objectives `[B, O]` and on r_v `[B]`, as R = c . r + c_v r_v."""
        return weights_BO / self.unit, -(weights_BO @ self.penalty)


class TransformedHead(GatedHead):
    """The head of ArmoRM's published layout, whose transform is a whole matrix T `[O, O]`.

        R(x, y) = sum_i g_i(x) r'_i,   r' = r T,   r = W f(x, y)

    A penalty on length is the row of the verbosity objective in T, so that there is no r_v of its
    own: `ModelOutput.length_B` is 0. The centers are 0 too, since no training responses are known.
    """

    transform: Tensor

    def __init__(self, num_objectives: int, size: int, gate: Gate) -> None:
        super().__init__(num_objectives, size, gate)
        self.register_buffer("transform", torch.eye(num_objectives))

    def debiased(self, values_BO: Tensor, length_B: Tensor) -> Tensor:
        """Returns r' `[B, O]`."""
        return values_BO @ self.transform

    def coefficients(self, weights_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c(x) = T g(x) on the raw objectives `[B, O]`, as R = c . r, and 0 on length."""
        return weights_BO @ self.transform.T, weights_BO.new_zeros(len(weights_BO))
