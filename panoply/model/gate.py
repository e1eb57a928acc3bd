"""The gate and the heads that it is compared with: plain modules on frozen features.

Legend: `B` batch of prompts or pairs, `O` objectives, `D` feature size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from panoply.config.armorm import GateConfig


def spread_of(features_BD: Tensor) -> Tensor:
    """Returns the deviation of each feature `[D]`, 1 for one that does not vary.

    A tiny divisor would turn the first other value of such a feature into thousands.
    """
    spread_D = features_BD.std(0, correction=0)
    varies_D = spread_D > 1e-6 * features_BD.abs().amax(0)
    return torch.where(varies_D, spread_D, torch.ones_like(spread_D))


class Dropout(nn.Module):
    """Dropout whose mask does not depend on how a batch is split over workers.

    The mask is drawn for the whole batch, and every worker takes its own rows of it. With the same
    random state on all of them, they drop together what one worker would drop alone.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.rows, self.batch_size = slice(None), 0
        """This worker's rows of the batch, and the size of the whole batch; 0: it has all of it."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """Drops in training. Several parts, each of the worker's rows, may be stacked."""
        if not self.training or not self.probability:
            return x_BD
        size = self.batch_size or len(x_BD)
        num_parts = len(x_BD) // len(range(size)[self.rows])
        drawn = torch.rand(num_parts, size, x_BD.shape[1], device=x_BD.device, dtype=x_BD.dtype)
        kept_BD = (drawn >= self.probability)[:, self.rows].flatten(0, 1)
        return x_BD * kept_BD / (1 - self.probability)


class Gate(nn.Module):
    """Prompt-conditioned weights over objectives (arXiv 2406.12845, section 3.2).

        g(x) = s * softmax_O( MLP(f(x)) / tau )

    The softmax runs over the objectives: the weights of one prompt sum to s. `f(x)` is centered
    and scaled inside, so the module takes raw hidden states.
    """

    shift: Tensor
    spread: Tensor

    def __init__(
        self,
        size: int,
        num_objectives: int,
        *,
        hidden_size: int,
        num_hidden: int,
        dropout: float,
        temperature: float,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        widths = [size] + [hidden_size] * num_hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.top = nn.Linear(widths[-1], num_objectives)
        self.input_dropout = Dropout(input_dropout)
        self.dropout = Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def standardize(self, features_BD: Tensor) -> None:
        """Takes the mean and deviation of training features as the scale of f(x)."""
        self.shift.copy_(features_BD.mean(0))
        self.spread.copy_(spread_of(features_BD))

    @torch.no_grad()
    def start_from(self, weights_O: Tensor, scale: float) -> None:
        """Sets the gate to the same weights for every prompt, those of a fixed mixture.

        Training then has to find only what prompts change. A weight of 0 starts at a hundredth of
        the mean weight, so that it can grow.
        """
        kept_O = weights_O.clamp_min(0.01 / len(weights_O))
        self.top.weight.zero_()
        self.top.bias.copy_(self.temperature * (kept_O / kept_O.sum()).log())
        self.scale.fill_(scale)

    def weights(self, features_BD: Tensor) -> Tensor:
        """Returns softmax weights `[B, O]`: positive, summing to 1 for each prompt."""
        x = self.input_dropout((features_BD - self.shift) / self.spread)
        for layer in self.layers:
            x = self.dropout(torch.relu(layer(x)))
        return torch.softmax(self.top(x) / self.temperature, dim=-1)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns g(x) `[B, O]`, summing to s for each prompt."""
        return self.scale * self.weights(features_BD)


def make_gate(size: int, num_objectives: int, config: GateConfig) -> Gate:
    """Returns an untrained gate on features of this size."""
    return Gate(
        size,
        num_objectives,
        hidden_size=config.hidden_size,
        num_hidden=config.num_hidden,
        dropout=config.dropout,
        temperature=config.temperature,
        input_dropout=config.input_dropout,
    )


class ScalarHead(nn.Module):
    """A reward straight from the response's features: linear, or one hidden layer."""

    shift: Tensor
    spread: Tensor

    def __init__(self, size: int, *, hidden_size: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [size, hidden_size] if hidden_size else [size]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.top = nn.Linear(widths[-1], 1)
        self.dropout = Dropout(dropout)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def standardize(self, features_BD: Tensor) -> None:
        """Takes the mean and deviation of training features as the scale of the input."""
        self.shift.copy_(features_BD.mean(0))
        self.spread.copy_(spread_of(features_BD))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Returns scores `[B]`."""
        x = (features_BD - self.shift) / self.spread
        for layer in self.layers:
            x = self.dropout(torch.relu(layer(x)))
        return self.top(x).squeeze(-1)
