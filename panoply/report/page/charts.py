"""Charts as rows of a table: positions in percent, which the template draws with CSS.

A chart stands in the table that holds its numbers, so that it needs no other text; curves have
theirs in a table that unfolds below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from panoply.report.tables import number

Point: TypeAlias = Literal["gate", "rival", "other", "before", "after", "held", "tick"]
Hue: TypeAlias = Literal["hue0", "hue1", "hue2", "hue3", "hue4", "hue5", "hue6", "hue7"]
Line: TypeAlias = Literal["range", "link", "bar", "toward", "against"] | Hue
POINTS: tuple[Point, ...] = get_args(Point)
HUES: tuple[Hue, ...] = get_args(Hue)
"""Colors of what has no order: strategies, arms."""
STEPS = (1.0, 2.0, 5.0, 10.0)
MOST_STEPS = 5
MOST_PLACES = 7
"""Ticks across a plot."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from `low` to `high` that all rows of a chart share."""

    low: float
    high: float
    ticks: tuple[float, ...]
    origin: float
    """Where a line stands: chance, or no difference."""

    @classmethod
    def over(cls, values: Iterable[float | None], origin: float = 0.0) -> Axis:
        """Returns an axis from round number to round number that holds the values and the origin.

        Args:
            values: what is drawn; null and NaN are left out.
            origin: where the line stands.
        """
        drawn = [origin, *given(values)]
        low, high = min(drawn), max(drawn)
        least = (high - low or 1.0) / MOST_STEPS
        unit = 10.0 ** math.floor(math.log10(least))
        step = next(factor for factor in STEPS if factor * unit >= least * (1 - 1e-9)) * unit
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(i * step for i in range(first, max(last, first + 1) + 1))
        return cls(ticks[0], ticks[-1], ticks, origin)

    def at(self, value: float) -> float:
        """Returns where a value stands, in percent."""
        return 100 * (value - self.low) / (self.high - self.low)

    @property
    def labels(self) -> list[tuple[float, str, bool]]:
        """Position and text of the ticks, and whether one is needed where there is little room."""
        texts = (f"{tick + 0.0:.2f}".rstrip("0").rstrip(".") for tick in self.ticks)
        last = len(self.ticks) - 1
        return [
            (self.at(tick), text, i in (0, last))
            for i, (tick, text) in enumerate(zip(self.ticks, texts, strict=True))
        ]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point at `at` percent."""

    at: float
    kind: Point


@dataclass(frozen=True, slots=True)
class Span:
    """A line or bar from `start` percent, `width` percent wide."""

    start: float
    width: float
    kind: Line


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a name, what is drawn, and the numbers."""

    label: str
    cells: tuple[str, ...]
    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = ()
    style: Literal["", "strong", "dim"] = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A table with a drawing in each row."""

    caption: str
    first: str
    """What the rows are."""
    measure: str
    """What is drawn."""
    axis: Axis
    columns: Sequence[str]
    rows: Sequence[Row]
    legend: tuple[tuple[Point | Line, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A number, and how far it is shaded in percent."""

    text: str
    shade: float | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of numbers, shaded where a heat map helps."""

    caption: str
    first: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True, slots=True)
class Curve:
    """A small square plot, in percent from its lower left corner; points are sized by `radius`."""

    scorer: str
    low: float
    points: tuple[tuple[float, float, float], ...]
    """x, y, radius."""
    diagonal: float
    """Height at the left edge of the line of perfect calibration, which ends in a corner."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A curve of a plot: points in percent from its lower left corner."""

    name: str
    hue: Hue
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over the same places, with their numbers."""

    caption: str
    measure: str
    """What goes up."""
    axis: Axis
    """Of what goes up."""
    places: tuple[tuple[float, str], ...]
    """Position and text of the ticks across."""
    traces: tuple[Trace, ...]
    numbers: Grid


def given(values: Iterable[float | None]) -> list[float]:
    """Returns the values that are defined."""
    return [value for value in values if value is not None and math.isfinite(value)]


def ends(interval: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    """Returns both ends of an interval, null where it is absent."""
    return (interval[0], interval[1]) if interval else (None, None)


def marks(axis: Axis, kind: Point, *values: float | None) -> tuple[Mark, ...]:
    """Returns points for the values that are defined."""
    return tuple(Mark(axis.at(value), kind) for value in given(values))


def span(axis: Axis, kind: Line, first: float | None, second: float | None) -> tuple[Span, ...]:
    """Returns the line between two values, nothing where one is not defined."""
    at = sorted(map(axis.at, given([first, second])))
    return (Span(at[0], at[1] - at[0], kind),) if len(at) == 2 else ()


def hue(k: int) -> Hue:
    """Returns the color of the k-th of several."""
    return HUES[k % len(HUES)]


def plot(
    caption: str,
    first: str,
    measure: str,
    curves: Mapping[str, Mapping[int, float | None]],
    *,
    evenly: bool = False,
    origin: float = 0.0,
) -> Plot:
    """Returns curves in one frame; one without a value that is defined is left out.

    Args:
        caption: what is shown.
        first: what goes across, as rounds.
        measure: what goes up.
        curves: by name, values by where they stand across.
        evenly: the places across stand at equal distances, whatever their numbers.
        origin: where the dashed line stands.
    """
    shown = {name: found for name, found in curves.items() if given(found.values())}
    across = sorted({place for found in shown.values() for place in found})
    axis = Axis.over((value for found in shown.values() for value in found.values()), origin)
    spots = [float(i if evenly else place) for i, place in enumerate(across)]
    low, high = min(spots, default=0.0), max(spots, default=0.0)
    at = {
        place: 100 * (spot - low) / (high - low or 1.0)
        for place, spot in zip(across, spots, strict=True)
    }
    traces = tuple(
        Trace(
            name,
            hue(k),
            tuple(
                (at[place], axis.at(value))
                for place, value in sorted(found.items())
                if value is not None and math.isfinite(value)
            ),
        )
        for k, (name, found) in enumerate(curves.items())
        if name in shown
    )
    rows = [
        (str(place), [Cell(number(found.get(place))) for found in shown.values()])
        for place in across
    ]
    named = across[:: max(1, math.ceil(len(across) / MOST_PLACES))]
    places = tuple((at[place], str(place)) for place in named)
    numbers = Grid(f"{caption}: {measure}", first, list(shown), rows)
    return Plot(caption, measure, axis, places, traces, numbers)


def shaded(value: float | None, text: str, low: float, high: float) -> Cell:
    """Returns a cell whose shade says where its value stands between `low` and `high`."""
    if not given([value]) or value is None or high <= low:
        return Cell(text)
    return Cell(text, 100 * min(1.0, max(0.0, (value - low) / (high - low))))


def lowest_share(shares: Iterable[float | None]) -> float:
    """Returns where plots of shares start: at 1/2, or lower in whole tenths."""
    return math.floor(10 * min(0.5, *given(shares), 0.5) + 1e-9) / 10


def curve(scorer: str, found: Mapping[str, Any], low: float) -> Curve:
    """Returns a reliability curve: confidence from 1/2 to 1 across, accuracy from `low` to 1 up.

    The area of a point is its share of the pairs.
    """
    columns = list(zip(found["confidence"], found["accuracy"], found["count"], strict=True))
    most = max(given(found["count"]), default=0.0)
    points = tuple(
        (200 * (stated - 0.5), 100 * (right - low) / (1 - low), 1.5 + 5 * math.sqrt(n / most))
        for stated, right, n in columns
        if n and len(given([stated, right])) == 2
    )
    return Curve(scorer, low, points, 100 * (0.5 - low) / (1 - low))
