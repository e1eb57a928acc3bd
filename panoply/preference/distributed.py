"""The workers of a run, seen from one of them: its rank, and sums over all. Alone, all is a no-op.

Gradients are summed once a step and not averaged by `DistributedDataParallel`: a worker may have
several forwards in a step, or none, and the loss is a sum already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from panoply.types import Array


@dataclass(frozen=True, slots=True)
class Group:
    """All workers of a run, or this process alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: Array) -> Array:
        """Returns the sum of every worker's numbers, in double precision."""
        if self.size == 1:
            return values
        # A backend may know one kind of device alone.
        summed = torch.from_numpy(values).to(self.device)
        dist.all_reduce(summed)
        return summed.cpu().numpy()

    def most(self, value: int) -> int:
        """Returns the largest of every worker's numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Returns when every worker is here."""
        if self.size > 1:
            dist.barrier()

    def mine(self, rows: Iterable[int]) -> list[int]:
        """Returns this worker's part of some rows."""
        return list(rows)[self.rank :: self.size]

    def spread(self, rows: list[int], found: Array, num_rows: int) -> Array:
        """Returns `[num_rows, ...]` what all workers found for their rows; NaN for other rows."""
        out, seen = np.zeros((num_rows, *found.shape[1:])), np.zeros(num_rows)
        out[rows], seen[rows] = found, 1
        out, seen = self.sum(out), self.sum(seen)
        out[seen == 0] = np.nan
        return out

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over the workers, in one message for each kind of number."""
        if self.size == 1:
            return
        kinds: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is None:  # a worker without pairs in this step
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault(parameter.dtype, []).append(parameter)
        for group in kinds.values():
            grads = [parameter.grad for parameter in group if parameter.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            parts: tuple[Tensor, ...] = flat.split([grad.numel() for grad in grads])
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))
