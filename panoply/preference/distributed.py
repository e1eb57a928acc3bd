"""Collectives over the workers of a run. With a single worker they do nothing.

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
    """All workers of a run, as seen by one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def all_reduce_sum(self, values: Array) -> Array:
        """Returns the sum of every worker's numbers, in double precision."""
        if self.size == 1:
            return values
        # A backend may know one kind of device alone.
        total = torch.from_numpy(values).to(self.device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    def all_reduce_max(self, value: int) -> int:
        """Returns the largest of every worker's numbers."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        """Waits until every worker has come here."""
        if self.size > 1:
            dist.barrier()

    def shard(self, rows: Iterable[int]) -> list[int]:
        """Returns this worker's part of some rows."""
        return list(rows)[self.rank :: self.size]

    def gather_rows(self, rows: list[int], values: Array, num_rows: int) -> Array:
        """Returns `[num_rows, ...]` values that all workers computed; NaN where no worker did.

        Args:
            rows: rows that this worker computed.
            values: its values, one for each of `rows`.
            num_rows: rows of the result.
        """
        gathered, count = np.zeros((num_rows, *values.shape[1:])), np.zeros(num_rows)
        gathered[rows], count[rows] = values, 1
        gathered, count = self.all_reduce_sum(gathered), self.all_reduce_sum(count)
        gathered[count == 0] = np.nan
        return gathered

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over the workers, in one message for each dtype."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is None:  # a worker without pairs in this step
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for group in by_dtype.values():
            grads = [parameter.grad for parameter in group if parameter.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            parts: tuple[Tensor, ...] = flat.split([grad.numel() for grad in grads])
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))
