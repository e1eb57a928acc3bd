"""The check that a saved model scores as the run that trained it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from panoply.hub.backbone.scoring_model import ScoringModel
from panoply.types import Array, Ints

CHECKED_PAIRS = 16


def check_round_trip(
    folder: Path, model: ScoringModel, file: str | Path, rows: Ints, margin_P: Array, bound: float
) -> float:
    """Scores some pairs from their texts with a saved model; returns the largest drift.

    Args:
        folder: that the model was loaded from, for the message.
        model: the model.
        file: Parquet of the pairs.
        rows: of the file; the first CHECKED_PAIRS are scored.
        margin_P: score(chosen) - score(rejected) of all pairs of the file, as the run had them.
        bound: largest drift allowed, in deviations of `margin_P`.

    Raises:
        RuntimeError: the saved model scores differently.
    """
    checked = rows[:CHECKED_PAIRS]
    table = pq.read_table(file, columns=["prompt", "chosen", "rejected"])
    margins: list[float] = []
    for pair in table.take(checked).to_pylist():
        chosen, rejected = model.score(pair["prompt"], [pair["chosen"], pair["rejected"]])
        margins.append(float(chosen - rejected))
    drift = float(np.abs(np.array(margins) - margin_P[checked]).max() / np.nanstd(margin_P))
    if not drift <= bound:
        raise RuntimeError(
            f"the saved model in {str(folder)!r} differs from the run by {drift:.2e} of the "
            f"margins' deviation (allowed {bound:g}): do not use it, and report this"
        )
    return drift
