"""What all reward models that score have in common, whatever their head."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panoply.data.schema import Prompt, digest
from panoply.hub.backbone.backbone import PAD_RULE, Backbone, hash_tensors


class ScoringModel(ABC):
    """A reward model that gives each response a number of its own."""

    backbone: Backbone
    provenance: Mapping[str, str]
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
) -> dict[str, str]:
    """Returns what the scores of a model depend on, to be kept beside them.

    Args:
        kind: of the head.
        backbone: with its renderer.
        head: tensors of the head.
        pad_rule: what padding may do to a score.
    """
    renderer = backbone.renderer
    bos = renderer.tokenizer.decode(renderer.bos)
    return {
        "kind": kind,
        "backbone": backbone.name,
        "weights": digest(backbone.weights_hash, hash_tensors(head)),
        "template": renderer.template_hash,
        "bos": f"{bos} once" if bos else "as the template writes it",
        "padding": pad_rule,
        "dtype": str(backbone.decoder.dtype).removeprefix("torch."),
    }
