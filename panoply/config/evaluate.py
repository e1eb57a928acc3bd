"""Settings of scoring pairs with finished reward models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import require
from panoply.config.resume import DATA, NO_EFFECT, PLACE

Board: TypeAlias = Literal["none", "rmbench"]
"""Public boards, each a module of `panoply.boards`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Score preference pairs with a finished reward model and the scorers it was compared with."""

    model: str = field(metadata=PLACE)
    """Folder of the reward model, as a run leaves it in `OUT/model`."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = field(default="runs/evaluate", metadata=NO_EFFECT)
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""
    board: Board = "none"
    """Public board that the files are of; its own arithmetic is reported beside the metrics.
    rmbench: hard, normal and easy by domain."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEvalConfig:
    """Score preference pairs with several models, by source, on prompts that none has seen."""

    models: tuple[str, ...] = field(metadata=PLACE)
    """Folders of reward models, gated or scalar, as runs leave them in `OUT/model`."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = field(default="runs/cross_eval", metadata=NO_EFFECT)
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
        twice = len({name.rstrip("/") for name in self.models}) < len(self.models)
        require(not twice, "models", self.models, "different folders")
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
