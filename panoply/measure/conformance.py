"""Findings about a reward model, and how far two ways of computing its scores may lie apart."""

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
    """What one check found."""

    check: str
    finding: str
    verdict: Verdict
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind it, for machines."""


def drift(found_N: Array, wanted_N: Array) -> float:
    """Returns the largest difference of two computations of scores, in units of their spread.

        max_i |a_i - b_i| / std(b)

    Scores have no unit of their own. Not finite where a score is not.
    """
    difference = np.abs(found_N - wanted_N)
    if not np.isfinite(difference).all():
        return float("inf")
    most, spread = float(difference.max()), float(wanted_N.std())
    return 0.0 if not most else most / spread if spread else float("inf")


def judge(value: float, bounds: tuple[float, float]) -> Verdict:
    """Returns the verdict on a number that should be small."""
    fine, bad = bounds
    return "ok" if value <= fine else "warning" if value <= bad else "fail"


def flips(found_N: Array, wanted_N: Array) -> tuple[int, int]:
    """Returns how many pairs change their order, and how many are tied that were not."""
    first, second = np.triu_indices(len(wanted_N), 1)
    before = np.sign(wanted_N[first] - wanted_N[second])
    after = np.sign(found_N[first] - found_N[second])
    return int((before * after < 0).sum()), int(((after == 0) & (before != 0)).sum())
