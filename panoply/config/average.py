"""Settings of averaging reward models."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.resume import NO_EFFECT, PLACE
from panoply.config.tracked import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageConfig(TrackedRun):
    """Average the parameters of scalar reward models, for example of one per source.

    All must have the same architecture, chat template and token limits. The mean has temperature 1
    until one is fitted: its scores rank, and its probabilities say nothing yet.
    """

    models: tuple[str, ...] = field(metadata=PLACE)
    """Folders of scalar reward models (a run leaves one in `OUT/model`)."""
    out: str = field(default="runs/average", metadata=NO_EFFECT)
    """Folder of the results; the averaged model is in `OUT/model`."""
    experiment: str = field(default="average", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    model_name: str = field(default="average", metadata=NO_EFFECT)
    """Name that the model gets in MLflow's registry; each run adds a version."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
