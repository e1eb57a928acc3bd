"""Numbers of a composite that `jobs.calibrate` has fitted, as the composite's file holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from panoply.config import require
from panoply.config.serve import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFit:
    """Fitted numbers of one part."""

    __pydantic_config__ = STRICT

    mean: float
    """Mean of its scores."""
    deviation: float
    """Deviation of its scores, in which they are measured."""
    weight: float = 1.0
    """Weight in a sum."""

    def __post_init__(self) -> None:
        is_unit = 0 < self.deviation < math.inf
        require(is_unit, "deviation", self.deviation, "positive: a part that varies")


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationFit:
    """Fitted numbers of an escalation; see `panoply.scorers.composite.escalation`."""

    __pydantic_config__ = STRICT

    spread: float
    """Deviation of the first part's scores about the mean of their prompt."""
    slope: float
    """Factor of the first part's margin to log odds, by itself."""
    fused_slope: float
    """Factor of the first part's margin beside a verdict."""
    verdict: float
    """Factor of the second part's margin."""
    ask_below: float
    """Log odds of the first part below which the second is asked."""
    area: float
    """Area between the gain by margin and the gain of random calls."""
    area_low: float
    """Lower end of its 95 % interval; above 0, the margins tell where to ask."""
    area_high: float
    """Upper end of its 95 % interval."""
    gain_of_all: float
    """Accuracy that asking about every pair adds."""

    @property
    def is_informative(self) -> bool:
        """Says whether the margins tell where asking helps more than random calls do."""
        return self.area_low > 0 and self.slope > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeFit:
    """Numbers that `jobs.calibrate` has fitted, and the data that they are of."""

    __pydantic_config__ = STRICT

    pairs: tuple[str, ...]
    """Files of the pairs."""
    num_pairs: int
    """Pairs that were fitted on."""
    parts: Mapping[str, PartFit]
    """Numbers of each part; of an escalation none."""
    temperature: float | None = None
    """Score differences divided by it are log odds; none where scores order no pair."""
    threshold: float | None = None
    """Threshold of a hierarchy."""
    escalation: EscalationFit | None = None
    """Numbers of an escalation."""
