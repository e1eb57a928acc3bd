"""Inputs of the trained part of a model, computed once and shared by runs.

Where only the last layers or the head are trained, the part below never changes. Its outputs are
kept in blocks of pairs, named by all that they depend on, so that runs with other seeds, losses or
rates find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from panoply.config.preference import TrainedBackboneConfig
from panoply.data.schema import digest
from panoply.data.tokens import TokenPairs
from panoply.files import whole_file
from panoply.hub.backbone.backbone import hash_weights
from panoply.hub.policy.trainable import TrainableModel
from panoply.preference.distributed import Group

ROWS = 128
"""Pairs of a block."""


@dataclass(frozen=True, slots=True)
class ActivationCache:
    """Blocks of one backbone, cut at one layer."""

    folder: Path
    opened: dict[int, tuple[Sequence[str], Any]] = field(default_factory=dict)
    """Open blocks by their first row, with the list of pairs that the row is one of."""

    @classmethod
    def of(
        cls, trainable: TrainableModel, backbone: TrainedBackboneConfig, root: str
    ) -> ActivationCache:
        """Returns the cache of a backbone, below the root."""
        assert trainable.frozen_prefix is not None
        key = digest(
            hash_weights(trainable.frozen_prefix.model),
            str(sorted(asdict(backbone.rendering).items())),
            str(len(trainable.frozen_prefix.layers)),
            backbone.trained.kind,
            str(trainable.dtype),
            trainable.renderer.template_hash,
        )
        return cls(Path(root) / "inputs" / key)

    def fill(
        self, trainable: TrainableModel, tokens: TokenPairs, names: Sequence[str], group: Group
    ) -> None:
        """Computes the missing blocks; the workers share the work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = [i for i in range(0, len(names), ROWS) if not self._path(names, i).exists()]
        group.barrier()  # before anyone writes: all see the same list
        for start in group.shard(starts):
            rows = range(start, min(start + ROWS, len(names)))
            parts = [trainable.prefix_activations(tokens.tree(row)).cpu() for row in rows]
            with whole_file(self._path(names, start)) as partial:
                save_file({str(i): part for i, part in enumerate(parts)}, partial)
        group.barrier()

    def read(self, row: int, names: Sequence[str]) -> Tensor:
        """Returns the activations of one pair."""
        start = row - row % ROWS
        block = self.opened.get(start)
        # A block's name is a hash over all its pairs: too slow to make again for every row.
        if block is None or block[0] is not names:
            block = names, safe_open(str(self._path(names, start)), framework="pt")
            self.opened[start] = block
        return block[1].get_tensor(str(row % ROWS))

    def _path(self, names: Sequence[str], start: int) -> Path:
        return self.folder / f"{digest(*names[start : start + ROWS])}.safetensors"
