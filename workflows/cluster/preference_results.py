"""Results of models that were trained on pairs: calibration, metrics, and scorers beside them.

Legend: `P` pairs, `K` heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from actors.reward_trainer import TrainTask
from actors.training_loop import DONE
from actors.untrained import SCORERS, UNTRAINED, read_untrained
from panoply.config.composite import Mean, PooledRule
from panoply.files import read_json, reading
from panoply.measure.calibration import fit_scale, reliability
from panoply.measure.pair_report import report_pairs
from panoply.report.results.pairs import RAW
from panoply.scorers.composite.rules import pooled
from panoply.types import Array, Ints
from workflows.cluster.prepare_pairs import Preferences

MAIN, PLAIN, LENGTH = "score", "mixed", "length"
"""Names of the model of the configuration, of plain mixing beside MORE, and of the longer response
as the better one."""
TRAIN_AGAIN = f"delete the {DONE} beside it and run the same command again, which trains again"


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """Results of training one model, from its folder."""

    folder: Path
    margin_PK: Array
    """NaN where a pair was trained on."""
    history: list[dict[str, Any]]
    delayed: bool
    centers: tuple[float, ...]
    scales: tuple[float, ...]
    """Mean and deviation of each head's scores; 0 and 1 where there is one head."""
    chosen_PK: Array | None = None
    """Scores of the preferred responses, where a rule needs them."""
    rule: PooledRule = field(default_factory=Mean)
    """Rule that makes one score of the standardized heads'."""

    @classmethod
    def read(cls, folder: Path) -> TrainedRun:
        """Reads the results of a finished task."""
        done = read_json(folder / DONE)
        with reading(folder / "margins.npy", TRAIN_AGAIN):
            margin_PK = np.load(folder / "margins.npy", allow_pickle=False)
        chosen_PK = None
        if (scores := folder / "chosen.npy").is_file():
            with reading(scores, TRAIN_AGAIN):
                chosen_PK = np.load(scores, allow_pickle=False)
        moments = tuple(done["centers"]), tuple(done["scales"])
        return cls(folder, margin_PK, done["history"], done["delayed"], *moments, chosen_PK)

    @classmethod
    def joined(cls, members: Sequence[TrainedRun]) -> TrainedRun:
        """Returns an ensemble of runs of one head each; its history is that of the first."""
        chosen = [member.chosen_PK for member in members if member.chosen_PK is not None]
        return replace(
            members[0],
            margin_PK=np.concatenate([member.margin_PK for member in members], 1),
            centers=tuple(chain.from_iterable(member.centers for member in members)),
            scales=tuple(chain.from_iterable(member.scales for member in members)),
            chosen_PK=np.concatenate(chosen, 1) if chosen else None,
        )

    @property
    def margin_P(self) -> Array:
        """Margin of the score by the rule; by the mean, that of the standardized heads' margins."""
        if self.chosen_PK is None:
            return (self.margin_PK / np.array(self.scales)).mean(1)
        scales_K = np.array(self.scales)
        chosen_PK = (self.chosen_PK - np.array(self.centers)) / scales_K
        rejected_PK = chosen_PK - self.margin_PK / scales_K
        ones_K = np.ones(len(scales_K))
        return pooled(self.rule, chosen_PK.T, ones_K) - pooled(self.rule, rejected_PK.T, ones_K)


def measured_rows(preferences: Preferences) -> Ints:
    """Returns the rows on which scorers are calibrated or reported."""
    split = preferences.table.split
    return np.union1d(split.of("calibrate"), split.of("test"))


def baselines(task: TrainTask, preferences: Preferences) -> dict[str, Array]:
    """Returns the margins of the scorers that a model is compared with.

    They are the length of the response, and the model before training: its head, and the
    log-probability of the response where it is a language model. A head that no reward loss trains
    is left out.
    """
    folder, num_pairs = Path(task.folder), len(preferences.names)
    before = read_untrained(folder, measured_rows(preferences), num_pairs)
    if not task.config.loss.reward:
        before.pop(UNTRAINED, None)
    return before | {LENGTH: preferences.table.gap_P.astype(np.float64)}


def fitted_scale(margin_P: Array, preferences: Preferences) -> float:
    """Returns the scale 1 / T that turns margins into log odds, fitted on *calibrate*."""
    rows = preferences.table.split.of("calibrate")
    return fit_scale(margin_P[rows] * preferences.signs_P[rows])


def calibrate(
    trained: Mapping[str, TrainedRun], preferences: Preferences
) -> tuple[dict[str, float], dict[str, Array]]:
    """Returns each model's scale 1 / T to log odds, fitted on *calibrate*, and its margins.

    A model stands there twice: with its scale, and raw, with the margins as they are.
    """
    scales: dict[str, float] = {}
    margins: dict[str, Array] = {}
    for name, model in trained.items():
        scales[name] = fitted_scale(model.margin_P, preferences)
        scales[name + RAW] = 1.0
        margins[name] = margins[name + RAW] = model.margin_P
    return scales, margins


def measure(
    margins: Mapping[str, Array], scales: Mapping[str, float], preferences: Preferences
) -> dict[str, Any]:
    """Returns the metrics on *test*; curves of reliability leave out the model before training."""
    rows = preferences.table.split.of("test")
    return {
        "pairs": report_pairs(margins, preferences.table, rows, scales),
        "reliability": {
            name: reliability(margin[rows] * scales[name])
            for name, margin in margins.items()
            if name not in SCORERS
        },
    }


def summary(model: TrainedRun, sources: Sequence[str]) -> dict[str, Any]:
    """Returns the course of training: steps, tokens, time, losses, and MORE's mean weights."""
    history = model.history
    weights = [step["source_weights"] for step in history if "source_weights" in step]
    mean_weights = np.mean(weights, axis=0).tolist() if weights else None
    return {
        "num_steps": len(history),
        "tokens": sum(step["tokens"] for step in history),
        "seconds": sum(step["seconds"] for step in history),
        "first_loss": history[0]["loss"],
        "last_loss": float(np.mean([step["loss"] for step in history[-10:]])),
        "select_loss": [step["select_loss"] for step in history if "select_loss" in step],
        "weights_delayed": model.delayed,
        "mean_weights": dict(zip(sources, mean_weights, strict=True)) if mean_weights else None,
        "margin_mean_absolute": float(np.nanmean(np.abs(model.margin_P))),
    }
