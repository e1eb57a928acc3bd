"""What all reward models that score have in common, whatever their head."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panoply.data.schema import Prompt, digest
from panoply.hub.backbone import PAD_RULE, Backbone, hash_tensors


class ScoringModel(ABC):
    """A reward model that gives each response a number of its own."""

    backbone: Backbone
    provenance: Mapping[str, Any]
    """What a score depends on; see `provenance_of`."""
    temperature: float
    """Score differences divided by it are log odds."""

    @abstractmethod
    def score(self, prompt: Prompt, responses: Sequence[str]) -> NDArray[np.float32]:
        """Returns the score of each response to a prompt, `[R]` float32."""

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Returns the probability that response `a` is better than `b`.

        P(a > b) = sigma( (s(a) - s(b)) / T )
        """
        first, second = self.score(prompt, [a, b]).tolist()
        return (1 + math.tanh((first - second) / self.temperature / 2)) / 2


def provenance_of(
    kind: str, backbone: Backbone, head: Mapping[str, Tensor], pad_rule: str = PAD_RULE
) -> dict[str, Any]:
    """Returns what the scores of a model depend on: plain values, to be kept beside them.

    Args:
        kind: of the head.
        backbone: with its renderer.
        head: tensors of the head.
        pad_rule: what padding may do to a score.
    """
    return {
        "kind": kind,
        "weights_hash": digest(backbone.weights_hash, hash_tensors(head)),
        "template_hash": backbone.renderer.template_hash,
        "bos": list(backbone.renderer.bos),  # put before renders that do not bring them
        "pad_rule": pad_rule,
        "dtype": str(backbone.decoder.dtype).removeprefix("torch."),
    }
