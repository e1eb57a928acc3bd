"""Scored samples of a round as a Parquet file: what a run that was killed reads instead of asking.

Shapes: n responses to one prompt, K arms.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoply.types import Array

FLOATS = pa.list_(pa.float64())


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The responses to one prompt, and what was said of them."""

    prompt_id: str
    source: str
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether the policy ended each response."""
    verdict_n: Array
    """1 right, 0 wrong, NaN unknown."""
    score_Kn: Array
    """NaN where an arm failed or was not asked."""
    failures: Mapping[str, str]
    """By arm, why scores are missing that it was asked for."""

    @property
    def quality(self) -> float:
        """Share of the responses that are right; NaN where nothing is known."""
        known = self.verdict_n[np.isfinite(self.verdict_n)]
        return float(known.mean()) if len(known) else float("nan")


def write_scored(file: Path, scored: Sequence[ScoredPrompt], arms: Sequence[str]) -> None:
    """Writes samples in the order of their ids, whole or not at all."""
    ordered = sorted(scored, key=lambda one: one.prompt_id)
    columns: dict[str, Any] = {
        "prompt_id": [one.prompt_id for one in ordered],
        "source": [one.source for one in ordered],
        "responses": [one.responses for one in ordered],
        "ended": [one.ended for one in ordered],
        "verdicts": pa.array([_given(one.verdict_n) for one in ordered], FLOATS),
    }
    for k, arm in enumerate(arms):
        scores = [_given(one.score_Kn[k]) for one in ordered]
        columns[f"score:{arm}"] = pa.array(scores, FLOATS)
        failures = [one.failures.get(arm) for one in ordered]
        columns[f"failure:{arm}"] = pa.array(failures, pa.string())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    with partial.open("wb") as out:
        out.write(buffer.getvalue())
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


def read_scored(file: Path, arms: Sequence[str]) -> list[ScoredPrompt]:
    """Returns what `write_scored` wrote."""
    return [
        ScoredPrompt(
            prompt_id=row["prompt_id"],
            source=row["source"],
            responses=tuple(row["responses"]),
            ended=tuple(row["ended"]),
            verdict_n=np.array(row["verdicts"], np.float64),
            score_Kn=np.array([row[f"score:{arm}"] for arm in arms], np.float64),
            failures={arm: row[f"failure:{arm}"] for arm in arms if row[f"failure:{arm}"]},
        )
        for row in pq.read_table(file).to_pylist()
    ]


def _given(values_n: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values_n]
