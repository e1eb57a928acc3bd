"""Settings of fitting a composite's numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.files import LabeledFilesConfig, check_files
from panoply.config.resume import DATA, NO_EFFECT, PLACE
from panoply.config.tracked import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig(LabeledFilesConfig, TrackedRun):
    """Fit the numbers of a composite on preference pairs, and show what each part adds."""

    composite: str = field(metadata=PLACE)
    """File of the composite, as `combine:FILE.yaml` names it."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names; at least one."""
    write: str = field(default="", metadata=NO_EFFECT)
    """File that gets the fitted numbers; empty: the composite's own."""
    out: str = field(default="runs/calibrate", metadata=NO_EFFECT)
    """Folder of the results."""
    fit_on_train: bool = False
    """Fit on *train* beside *select*: for parts that were not trained on these prompts, such as
    published models and judges."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""
    experiment: str = field(default="calibrate", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
        check_files(self, self.pairs, "pairs")
