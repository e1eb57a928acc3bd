"""Findings about a reward model, and the drift between two ways of computing its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from panoply.types import Array

Verdict: TypeAlias = Literal["ok", "warning", "fail"]
BOUNDS = {"float32": (1e-3, 1e-2), "bfloat16": (0.1, 0.5)}
"""Drift up to the first is ok and beyond the second fails, by what the model computes in."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    finding: str
    verdict: Verdict
    advice: str = ""
    """Advice to the user; empty where nothing is to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind it, for machines."""


def drift(scores_N: Array, expected_N: Array) -> float:
    """Returns the largest difference of two computations of scores, in units of their spread.

        max_i |a_i - b_i| / std(b)

    Scores have no unit of their own. Not finite where a score is not.
    """
    difference = np.abs(scores_N - expected_N)
    if not np.isfinite(difference).all():
        return float("inf")
    largest, spread = float(difference.max()), float(expected_N.std())
    if not largest:
        return 0.0
    return largest / spread if spread else float("inf")


def judge(value: float, bounds: tuple[float, float]) -> Verdict:
    """Returns the verdict on a number that should be small."""
    if value <= bounds[0]:
        return "ok"
    return "warning" if value <= bounds[1] else "fail"


def flips(scores_N: Array, expected_N: Array) -> tuple[int, int]:
    """Returns how many pairs change their order, and how many are tied that were not."""
    first, second = np.triu_indices(len(expected_N), 1)
    before = np.sign(expected_N[first] - expected_N[second])
    after = np.sign(scores_N[first] - scores_N[second])
    return int((before * after < 0).sum()), int(((after == 0) & (before != 0)).sum())
