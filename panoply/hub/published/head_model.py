"""Published scalar reward models: a decoder and a small head that reads the last token.

    linear       s = w . z + b
    two layers   s = w_2 . relu(W_1 z + b_1) + b_2, and so on

z is the state at the last token of the render, found by counting tokens and never by looking for a
pad token. The head is float32, whatever the decoder computes in: bfloat16 scores tie.

Legend: `R` responses, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panoply.hub.backbone.backbone import Backbone
from panoply.hub.reward_model import ScoringModel, provenance_of
from panoply.model.tree import TokenTree


class HeadModel(ScoringModel[float]):
    """A scalar reward model that others trained: conversations in, scores out."""

    temperature = 1.0
    """Temperature of Bradley-Terry's loss, with which such models are trained."""

    def __init__(self, backbone: Backbone, head: nn.Module, *, is_value_head: bool = False) -> None:
        self.backbone = backbone
        self.head = head.cpu().float().eval().requires_grad_(False)
        kind = "linear" if isinstance(head, nn.Linear) else "two_layer"
        if is_value_head:
            kind = "value_head"
        self.provenance = provenance_of(kind, backbone, self.head.state_dict())

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[TokenTree]) -> Tensor:
        """Returns the scores `[R]` of all responses of some trees, tree by tree."""
        return self.head(self.backbone.features(trees).last_RLD[:, -1])[:, 0]

    def forward(self, trees: Sequence[TokenTree]) -> list[float]:
        """Returns the score of each response."""
        return self.score_trees(trees).tolist()

    def score_of(self, output: float) -> float:
        """Returns the output, which is the score."""
        return output
