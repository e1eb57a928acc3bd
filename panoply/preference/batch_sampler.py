"""Pairs of each step: a pure function of (seed, step), whatever the number of workers.

Legend: `P` pairs of the training part, `K` sources.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from panoply.types import Ints


def batch_indices(
    seed: int | tuple[int, ...], step: int, num_pairs: int, pairs_per_step: int
) -> list[int]:
    """Returns the pairs of a step: every epoch is a new order, its last step may be shorter.

    A seed of several numbers, such as that of a run and a round, names other orders.

    Raises:
        ValueError: there is no pair, or no pair in a step.
    """
    if num_pairs < 1 or pairs_per_step < 1 or step < 0:
        raise ValueError(
            f"num_pairs and pairs_per_step must be positive and step not negative, got "
            f"{num_pairs!r}, {pairs_per_step!r}, {step!r}"
        )
    epoch, place = divmod(step, -(-num_pairs // pairs_per_step))
    key = (seed,) if isinstance(seed, int) else seed
    order = np.random.default_rng((*key, epoch)).permutation(num_pairs)
    return order[place * pairs_per_step : (place + 1) * pairs_per_step].tolist()


@dataclass(frozen=True, slots=True)
class BatchSampler:
    """Assigns pairs to the steps of a run.

    Mixed: every epoch is a new order of all pairs. Balanced: a step has the same number of pairs of
    every source, each of which goes through its own orders; a small source comes round more often.
    """

    source_P: Ints
    """Number of each pair's source; every number below the largest occurs."""
    pairs_per_step: int
    seed: int
    balanced: bool = False
    rows_K: tuple[Ints, ...] = field(init=False)
    """Pairs of each source."""

    def __post_init__(self) -> None:
        num_sources = int(self.source_P.max()) + 1
        rows = tuple(np.flatnonzero(self.source_P == k) for k in range(num_sources))
        object.__setattr__(self, "rows_K", rows)
        if self.balanced and self.pairs_per_step % num_sources:
            fit = -(-self.pairs_per_step // num_sources) * num_sources
            raise ValueError(
                f"`schedule.pairs_per_step` is {self.pairs_per_step}, which {num_sources} sources "
                f"cannot share equally: take a multiple of {num_sources}, for example {fit}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that together hold as many pairs as there are."""
        return -(-len(self.source_P) // self.pairs_per_step)

    def batch_indices(self, step: int) -> list[int]:
        """Returns the pairs of a step; balanced ones source by source."""
        if not self.balanced:
            return batch_indices(self.seed, step, len(self.source_P), self.pairs_per_step)
        share = self.pairs_per_step // len(self.rows_K)
        indices: list[int] = []
        for source, rows in enumerate(self.rows_K):
            places = _cycle(self.seed, source, len(rows), step * share, share)
            indices += rows[places].tolist()
        return indices

    def epochs_per_source(self, num_steps: int) -> list[float]:
        """Returns the passes over each source in a number of steps."""
        if not self.balanced:
            return [num_steps / self.steps_per_epoch] * len(self.rows_K)
        share = self.pairs_per_step // len(self.rows_K)
        return [num_steps * share / len(rows) for rows in self.rows_K]


def _cycle(seed: int, source: int, size: int, start: int, count: int) -> Ints:
    """Returns `count` places of the endless sequence of orders of one source."""
    first, last = start // size, (start + count - 1) // size
    orders = [
        np.random.default_rng((seed, source, epoch)).permutation(size)
        for epoch in range(first, last + 1)
    ]
    offset = start - first * size
    return np.concatenate(orders)[offset : offset + count]
