"""Settings of best of n on recorded scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.resume import DATA, NO_EFFECT
from panoply.config.tracked import TrackedRun

FEW_SAMPLES = 16
"""Samples of a prompt up to which every n is measured; of more, the powers of 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBestOfNConfig(TrackedRun):
    """Best of n on recorded scores: many scorers on one set of samples, without any model."""

    samples: str = field(metadata=DATA)
    """Parquet file with a row for each sample: its prompt, what it is worth, and scores."""
    prompt: str = "item"
    """Column that is the same for all samples of a prompt."""
    gold: str = "is_correct"
    """Column of what a sample is worth: whether it is right, or a number in [0, 1]."""
    scores: tuple[str, ...] = ()
    """Columns of scores, higher is better; empty: all that begin with `score_`."""
    num_samples: tuple[int, ...] = ()
    """Numbers n of samples among which the best is chosen. Empty: all up to the samples of a
    prompt, or powers of 2 where a prompt has more than 16."""
    out: str = field(default="runs/best-of-n", metadata=NO_EFFECT)
    """Run folder."""
    experiment: str = field(default="best-of-n", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        sizes = self.num_samples
        ascending = sizes == tuple(sorted(set(sizes))) and all(n >= 1 for n in sizes)
        require(ascending, "num_samples", sizes, "ascending numbers from 1")

    def sizes(self, num_samples: int) -> tuple[int, ...]:
        """Returns the numbers n, of which the first is 1.

        Args:
            num_samples: samples that every prompt has.

        Raises:
            ValueError: a number is larger.
        """
        sizes = self.num_samples
        allowed = f"at most {num_samples}, the samples of a prompt"
        require(not sizes or sizes[-1] <= num_samples, "num_samples", sizes, allowed)
        if not sizes and num_samples <= FEW_SAMPLES:
            sizes = tuple(range(1, num_samples + 1))
        elif not sizes:
            powers = [2**power for power in range(num_samples.bit_length())]
            sizes = (*powers, num_samples)
        return tuple(sorted({1, *sizes}))
