"""Settings of a composite, as its file holds them: `combine:FILE.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from panoply.config import require
from panoply.config.composite_fit import CompositeFit
from panoply.config.serve import NAME, STRICT, check_address

Scale: TypeAlias = Literal["frozen", "prompt", "raw"]
Asks: TypeAlias = Literal["pairs", "responses"]
WhenMissing: TypeAlias = Literal["error", "keep_first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartConfig:
    """One scorer of a composite."""

    __pydantic_config__ = STRICT

    where: str
    """Scorer as WHERE names it; a path is looked up from the folder of the composite's file."""
    weight: float | None = None
    """Weight in a sum, or of a shaped aspect; left out, the fitted one, or 1 where none was
    fitted."""
    clip: tuple[float, float] | None = None
    """Least and most of the part's score after it was scaled."""
    timeout: float | None = None
    """Most seconds of one call of the part, after which its scores are errors; left out, its
    own."""

    def __post_init__(self) -> None:
        require(bool(self.where), "where", self.where, "a scorer")
        check_address(self.where)
        is_finite = self.weight is None or math.isfinite(self.weight)
        require(is_finite, "weight", self.weight, "a finite number")
        ordered = self.clip is None or self.clip[0] < self.clip[1]
        require(ordered, "clip", self.clip, "[LEAST, MOST]")
        is_time = self.timeout is None or 0 < self.timeout < math.inf
        require(is_time, "timeout", self.timeout, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSum:
    """Rule: the sum of the parts' scores, each times its weight."""

    __pydantic_config__ = STRICT

    kind: Literal["sum"] = "sum"
    """Name of the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Rule: the mean of the parts' scores."""

    __pydantic_config__ = STRICT

    kind: Literal["mean"] = "mean"
    """Name of the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """Rule: the median of the parts' scores."""

    __pydantic_config__ = STRICT

    kind: Literal["median"] = "median"
    """Name of the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """Rule: the least of the parts' scores, worst-case optimization (WCO)."""

    __pydantic_config__ = STRICT

    kind: Literal["minimum", "wco"] = "minimum"
    """Name of the rule; both names are the same rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBound:
    """Rule: the mean less a multiple of the parts' deviation (LCB)."""

    __pydantic_config__ = STRICT

    kind: Literal["lcb"] = "lcb"
    """Name of the rule."""
    beta: float = 1.0
    """Deviations that are taken off."""

    def __post_init__(self) -> None:
        require(0 <= self.beta < math.inf, "beta", self.beta, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariancePenalty:
    """Rule: the mean less a multiple of the parts' variance (UWO)."""

    __pydantic_config__ = STRICT

    kind: Literal["uwo"] = "uwo"
    """Name of the rule."""
    penalty: float = 0.5
    """Variances that are taken off."""

    def __post_init__(self) -> None:
        require(0 <= self.penalty < math.inf, "penalty", self.penalty, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """Rule: one part, and above a threshold of it the others as shaped aspects (ALaRM)."""

    __pydantic_config__ = STRICT

    kind: Literal["hierarchy"] = "hierarchy"
    """Name of the rule."""
    first: str
    """Part whose score decides the level; the others are asked above the threshold alone."""
    threshold: float | None = None
    """Least score of the first part, in frozen deviations, above which aspects count; left out, the
    fitted one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """Rule: one part that has to be passed, then the weighted sum of the others."""

    __pydantic_config__ = STRICT

    kind: Literal["gate"] = "gate"
    """Name of the rule."""
    first: str
    """Part that has to be passed; the others are not asked where it is not."""
    above: float
    """Score of that part, in its own unit, above which it is passed."""
    otherwise: float
    """Score of a response that does not pass."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.otherwise), "otherwise", self.otherwise, "a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Rule: the first part that scores all responses to a prompt, in the order of the file."""

    __pydantic_config__ = STRICT

    kind: Literal["fallback"] = "fallback"
    """Name of the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """Rule: a cheap part, and a costly one that is asked where the cheap one is unsure."""

    __pydantic_config__ = STRICT

    kind: Literal["escalation"] = "escalation"
    """Name of the rule."""
    first: str
    """Part that scores every response."""
    second: str
    """Part that is asked about the pairs of which the first is least sure."""
    asks: Asks = "pairs"
    """Unit of asking the second part: each unsure pair by itself, as of a judge that compares; or
    all responses of unsure pairs at once, as of a scorer that rates each alone."""
    share: float = 0.2
    """Share of the pairs about which the second part is to be asked; calibration turns it into a
    threshold."""
    calls_per_minute: float = 0.0
    """Most calls of the second part in a minute, by one replica; beyond it the first part's
    evidence stands alone. 0: no limit."""
    most_pairs: int = 16
    """Most pairs of one prompt about which it is asked."""
    when_second_fails: WhenMissing = "error"
    """Outcome of a response to which the second part gave an error: an error, or the first part's
    evidence alone."""

    def __post_init__(self) -> None:
        require(self.first != self.second, "second", self.second, "another part than the first")
        require(0 < self.share <= 1, "share", self.share, "within (0, 1]")
        limit = self.calls_per_minute
        require(0 <= limit < math.inf, "calls_per_minute", limit, ">= 0")
        require(self.most_pairs >= 1, "most_pairs", self.most_pairs, ">= 1")


PooledRule: TypeAlias = WeightedSum | Mean | Median | Minimum | LowerBound | VariancePenalty
"""Rules of the scores of all parts together."""
Rule: TypeAlias = Annotated[
    PooledRule | Hierarchy | GateRule | Fallback | Escalation, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPenalty:
    """A price of long responses."""

    __pydantic_config__ = STRICT

    per_thousand: float
    """Score taken off for a thousand characters beyond the free ones."""
    free: int = 0
    """Characters that cost nothing."""

    def __post_init__(self) -> None:
        is_price = 0 < self.per_thousand < math.inf
        require(is_price, "per_thousand", self.per_thousand, "positive")
        require(self.free >= 0, "free", self.free, ">= 0")

    def of(self, num_characters: int) -> float:
        """Returns the price of a response of so many characters."""
        return self.per_thousand * max(0, num_characters - self.free) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeConfig:
    """Several scorers in one."""

    __pydantic_config__ = STRICT

    parts: Mapping[str, PartConfig]
    """Scorers by name, in the order of a fallback."""
    rule: Rule
    """Rule that makes one score of the parts'."""
    scale: Scale = "frozen"
    """Unit of the parts' scores: frozen means and deviations of the fitted pairs, the responses to
    the same prompt, or raw as they come."""
    quorum: int = 0
    """Least parts that have to score a response, of rules of all parts together; 0: all."""
    length: LengthPenalty | None = None
    """Price of long responses."""
    fitted: CompositeFit | None = field(default=None)
    """Numbers that `jobs.calibrate` has written."""

    def __post_init__(self) -> None:
        require(len(self.parts) >= 2, "parts", list(self.parts), "two parts or more")
        wrong = [name for name in self.parts if not NAME.fullmatch(name)]
        allowed = "names of letters, digits, '.', '_' and '-', at most 64"
        require(not wrong, "parts", wrong, allowed)
        require(0 <= self.quorum <= len(self.parts), "quorum", self.quorum, "0, or at most all")
        pooled = isinstance(self.rule, PooledRule)
        require(pooled or not self.quorum, "quorum", self.quorum, "0 with such a rule")
        for name in ("first", "second"):
            part = getattr(self.rule, name, None)
            is_there = part is None or part in self.parts
            require(is_there, f"rule.{name}", part, f"one of {list(self.parts)}")
        if isinstance(self.rule, Escalation):
            require(len(self.parts) == 2, "parts", list(self.parts), "the rule's two")
        if isinstance(self.rule, Hierarchy | Escalation):
            require(self.scale == "frozen", "scale", self.scale, "'frozen' with such a rule")

    def check_fitted(self) -> None:
        """Checks that what is fitted suffices for the rule.

        Raises:
            ValueError: a scale, a threshold or an escalation has no statistics, or the margins of
                an escalation tell nothing.
        """
        rule, fit = self.rule, self.fitted
        what = f"`rule.kind`: {rule.kind!r}"  # a key that every file has, and so a line
        fits = "`python -m jobs.calibrate FILE --pairs PAIRS` fits and writes it"
        if isinstance(rule, Hierarchy) and rule.threshold is None:
            has_threshold = fit is not None and fit.threshold is not None
            if not has_threshold:
                raise ValueError(f"{what} has no threshold, set or fitted: {fits}")
        if self.scale == "frozen" and fit is None:
            raise ValueError(
                f"{what} is of scores in frozen means and deviations, of which the file has none: "
                f"{fits}"
            )
        if not isinstance(rule, Escalation):
            if fit is not None and set(fit.parts) != set(self.parts):
                raise ValueError(f"`fitted.parts` are not those of the file: {fits} anew")
            return
        if fit is None or fit.escalation is None:
            raise ValueError(f"{what} has no fitted threshold: {fits}")
        numbers = fit.escalation
        if not numbers.is_informative:
            raise ValueError(
                f"`rule.first`: the margins of {rule.first!r} do not tell where {rule.second!r} "
                f"helps: on the fitted pairs asking by margin lies above random calls by an area "
                f"of {numbers.area:.4f} [{numbers.area_low:.4f}, {numbers.area_high:.4f}]. Name "
                "one of the two alone: jobs.calibrate says which"
            )
