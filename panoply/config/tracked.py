"""Settings of what follows a run: MLflow and other trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import require
from panoply.config.resume import NO_EFFECT

TrackerName: TypeAlias = Literal["mlflow", "tensorboard", "trackio", "wandb"]
TRACKERS: tuple[TrackerName, ...] = ("mlflow", "tensorboard", "trackio", "wandb")


# Without slots: a configuration has settings of its files beside these, and two bases with slots
# cannot be one class.
@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run that trackers follow."""

    experiment: str = field(default="panoply", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    report_to: tuple[TrackerName | Literal["none"], ...] = field(
        default=("mlflow",), metadata=NO_EFFECT
    )
    """Trackers that get the steps and results: mlflow, tensorboard, trackio, wandb; or none."""

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """Names of the trackers.

        Raises:
            ValueError: `report_to` has an unknown name, or 'none' beside others.
        """
        names: tuple[TrackerName, ...] = tuple(x for x in TRACKERS if x in self.report_to)
        is_known = bool(self.report_to) and set(self.report_to) <= {*TRACKERS, "none"}
        is_clear = not names or "none" not in self.report_to
        require(is_known and is_clear, "report_to", self.report_to, f"some of {TRACKERS}, or none")
        return names
