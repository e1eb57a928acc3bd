"""Settings of scoring the rollouts of a training run again."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.files import names_of_columns
from panoply.config.resume import DATA, NO_EFFECT
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.secret import check_file_uri

RECORDED = "recorded"
"""Name of the reward that the rollouts had, beside the scorers."""
CONTROLS = ("longest", "random")
"""Rules of choice that the report has beside the scorers: the longest response, and any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreConfig(TrackedRun):
    """Score the rollouts of a training run by any scorers, and compare what each would reward."""

    rollouts: tuple[str, ...] = field(metadata=DATA)
    """Files of rollouts: TRL's completions, verl's and OpenRLHF's JSONL, NeMo-Gym's JSONL,
    `samples.parquet` of LASeR and best of n, or rows of prompt and response."""
    arms: tuple[str, ...] = field(default=(), metadata=DATA)
    """`NAME=WHERE` of each scorer: a reward model's folder, hub name or `models:/NAME@ALIAS`;
    `function:FILE.py:NAME`; `DIALECT+URL#MODEL`; `replay:FILE`; `judge:FILE.yaml`;
    `combine:FILE.yaml`. More of them may be added to a finished run."""
    columns: tuple[str, ...] = ()
    """Columns under the names of a known layout, as in `prompt=question,reward=accuracy`."""
    out: str = field(default="runs/rescore", metadata=NO_EFFECT)
    """Folder of the scores and the report."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Actors of each scorer; they share a judge's limits."""
    max_quarantine_share: float = 0.2
    """Largest share of bad rows, which are left out; a larger one stops the run."""
    experiment: str = field(default="rescore", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.rollouts), "rollouts", self.rollouts, "at least one file")
        for file in self.rollouts:
            check_file_uri(file, "rollouts")
        require(bool(self.arms), "arms", self.arms, "at least one NAME=WHERE")
        reserved = {RECORDED, *CONTROLS} & {arm.name for arm in self.scorers()}
        require(not reserved, "arms", sorted(reserved), "names that no row of the report has")
        names_of_columns(self.columns)
        share = self.max_quarantine_share
        require(0 <= share <= 1, "max_quarantine_share", share, "in [0, 1]")
        require(self.num_workers > 0, "num_workers", self.num_workers, "positive")

    def scorers(self) -> tuple[ServedModelConfig, ...]:
        """Returns the scorers with their names.

        Raises:
            ValueError: two have one name, or an address holds a secret.
        """
        return ServeConfig(models=self.arms).served_models()
