"""Settings of scoring pairs with finished reward models."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.files import LabeledFilesConfig, check_files
from panoply.config.resume import DATA, NO_EFFECT, PLACE
from panoply.config.tracked import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(LabeledFilesConfig, TrackedRun):
    """Score preference pairs with a reward model, or any other scorer, and others beside it."""

    model: str = field(metadata=PLACE)
    """Scorer: a reward model's folder (a run leaves one in `OUT/model`), hub name or
    `models:/NAME@ALIAS`; `function:MODULE:NAME` or `function:FILE.py:NAME`; `DIALECT+URL#MODEL`;
    `replay:FILE`; `judge:FILE.yaml`; or `combine:FILE.yaml`."""
    beside: tuple[str, ...] = field(default=(), metadata=PLACE)
    """Further scorers, named likewise, that are reported beside it on the same pairs: another
    model, or a function such as the response's length."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = field(default="runs/evaluate", metadata=NO_EFFECT)
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""
    experiment: str = field(default="evaluate", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
        check_files(self, self.pairs, "pairs")
        different = len({self.model, *self.beside}) == 1 + len(self.beside)
        require(different, "beside", self.beside, "different scorers, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEvalConfig(LabeledFilesConfig, TrackedRun):
    """Score preference pairs with several scorers, by source, on prompts that none has seen."""

    models: tuple[str, ...] = field(metadata=PLACE)
    """Scorers: folders of reward models (a run leaves one in `OUT/model`), hub names,
    `models:/NAME@ALIAS`, `function:FILE.py:NAME`, `DIALECT+URL#MODEL`, `replay:FILE`,
    `judge:FILE.yaml`, `combine:FILE.yaml`."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    out: str = field(default="runs/cross_eval", metadata=NO_EFFECT)
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""
    experiment: str = field(default="cross_eval", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
        twice = len({name.rstrip("/") for name in self.models}) < len(self.models)
        require(not twice, "models", self.models, "different folders")
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
        check_files(self, self.pairs, "pairs")
