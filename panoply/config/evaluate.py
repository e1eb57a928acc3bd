"""Settings of scoring pairs with finished reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from panoply.config import require
from panoply.config.tracked import TrackedRun

Board: TypeAlias = Literal["none", "rmbench"]
"""Public boards, each a module of `panoply.boards`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(TrackedRun):
    """Score preference pairs with a finished reward model and the scorers it was compared with."""

    model: str
    """Folder of the reward model, as a run leaves it in `OUT/model`."""
    pairs: tuple[str, ...] = ()
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = "runs/evaluate"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""
    experiment: str = "evaluate"
    """MLflow experiment, or project of another tracker."""
    board: Board = "none"
    """Public board that the files are of; its own arithmetic is reported beside the metrics.
    rmbench: hard, normal and easy by domain."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEvalConfig(TrackedRun):
    """Score preference pairs with several models, by source, on prompts that none has seen."""

    models: tuple[str, ...]
    """Folders of reward models, gated or scalar, as runs leave them in `OUT/model`."""
    pairs: tuple[str, ...] = ()
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = "runs/cross_eval"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""
    experiment: str = "cross_eval"
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
        twice = len({name.rstrip("/") for name in self.models}) < len(self.models)
        require(not twice, "models", self.models, "different folders")
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
