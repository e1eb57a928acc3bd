"""Settings of scoring pairs with finished reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from panoply.config import require

Board: TypeAlias = Literal["none", "rmbench"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Scoring pairs with a finished reward model."""

    model: str
    """Folder of the reward model, as a run leaves it in `OUT/model`."""
    pairs: tuple[str, ...]
    """Preference pair files: Parquet, JSONL, or hub names."""
    out: str = "runs/evaluate"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""
    board: Board = "none"
    """Public board that the files are of; its own arithmetic is reported beside the metrics."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEvalConfig:
    """Every model on every source of some pairs."""

    models: tuple[str, ...]
    """Folders of reward models, gated or scalar."""
    pairs: tuple[str, ...]
    """Preference pair files: Parquet, JSONL, or hub names."""
    out: str = "runs/evaluate"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
        twice = len({name.rstrip("/") for name in self.models}) < len(self.models)
        require(not twice, "models", self.models, "different folders")
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
