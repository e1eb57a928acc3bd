"""Rating maps between a source's own scale and [0, 1].

Objectives of different sources are regressed side by side, so each raw scale is mapped affinely to
the unit interval. The map is stored with the data and with the trained model, so a prediction can
always be shown in the scale its raters used. A missing rating is NaN on both sides, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class RatingMap:
    """An invertible affine map between a raw rating scale and [0, 1].

    Raises:
        ValueError: a bound is not finite or `low` is not below `high`.
    """

    low: float
    """The lowest rating of the scale, raw."""
    high: float
    """The highest rating of the scale, raw."""
    bin_centers: bool = False
    """Map the integers low..high to the centers of as many equal bins, as ArmoRM does: the ends
    of the scale then lie half a bin inside [0, 1]. Only for scales in steps of one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"a rating scale needs finite low < high, got low={self.low!r}, high={self.high!r}"
            )

    def to_unit(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Maps raw ratings (any shape) to [0, 1]; NaN stays NaN.

        r = (raw - low) / (high - low), or with bin centers
        r = (raw - low + 1/2) / (high - low + 1).
        """
        offset, width = self._offset_and_width()
        return (np.asarray(raw, dtype=np.float64) - self.low + offset) / width

    def to_raw(self, unit: ArrayLike) -> NDArray[np.float64]:
        """Maps values in [0, 1] (any shape) to the raw scale: the inverse of `to_unit`."""
        offset, width = self._offset_and_width()
        return np.asarray(unit, dtype=np.float64) * width - offset + self.low

    def holds(self, raw: float) -> bool:
        """Returns whether a rating lies on the scale, up to float32 rounding."""
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        return self.low - slack <= raw <= self.high + slack

    def to_dict(self) -> dict[str, float | bool]:
        """Returns the map as JSON-able values."""
        return {"low": self.low, "high": self.high, "bin_centers": self.bin_centers}

    @classmethod
    def from_dict(cls, values: Mapping[str, float | bool]) -> RatingMap:
        """Rebuilds a map from `to_dict`."""
        return cls(float(values["low"]), float(values["high"]), bool(values["bin_centers"]))

    def _offset_and_width(self) -> tuple[float, float]:
        span = self.high - self.low
        return (0.5, span + 1.0) if self.bin_centers else (0.0, span)
