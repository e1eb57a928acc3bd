"""The content of a report, as data: sections of sentences, tables and curves.

One function turns each part of `metrics.json` into sections; `terminal`, `page`, `markdown` and
`figures` draw whatever they get and know no metric. A value that is null or NaN is shown as '-'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

Format: TypeAlias = Callable[[Any], str]
Mark: TypeAlias = Literal["dot", "before", "after", "other", "tick", "interval", "bar"]
Line: TypeAlias = Literal["solid", "dashed", "faint", "steps", "points", "hollow"]
Metrics: TypeAlias = Mapping[str, Any]
"""`metrics.json`, or a part of it."""

MOST_PLACES = 200
"""Rows of a table of curves; of longer curves some of the places are shown."""


def is_defined(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def defined(values: Iterable[float | None]) -> list[float]:
    """Returns the values that are neither null, NaN nor infinite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Returns a number as text."""
    if value is None or math.isnan(value):
        return "-"
    rounded = round(value, digits) + 0.0  # + 0.0: no negative zero
    return f"{rounded:{'+' if signed else ''}.{digits}f}"


def signed(value: float | None) -> str:
    """Returns a number with its sign as text."""
    return number(value, signed=True)


def short(value: float | None) -> str:
    """Returns a share or a weight in two digits."""
    return number(value, 2)


def count(value: float | None) -> str:
    """Returns a count as text."""
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def interval(ends: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """Returns an interval as text; '-' where one of its ends is not defined."""
    if len(defined(ends or ())) < 2:
        return "-"
    return f"[{', '.join(number(end, signed=signed) for end in ends or ())}]"


def signed_interval(ends: Sequence[float | None] | None) -> str:
    """Returns an interval of a difference as text."""
    return interval(ends, signed=True)


def words(name: str) -> str:
    """Returns the name of a scorer in words."""
    return name.replace("_", " ")


def falling(value: float | None) -> float:
    """Returns a sort key: largest first, what is not defined last."""
    return math.inf if value is None or math.isnan(value) else -value


def rising(value: float | None) -> float:
    """Returns a sort key: smallest first, what is not defined last."""
    return math.inf if value is None or math.isnan(value) else value


def side(ends: Sequence[float | None] | None) -> Literal["above", "below", "around"]:
    """Returns where an interval lies from 0; `around` where it holds 0 or is not defined."""
    both = defined(ends or ())
    if len(both) == 2 and both[0] > 0:
        return "above"
    return "below" if len(both) == 2 and both[1] < 0 else "around"


def mean(values: Sequence[float | None]) -> float:
    """Returns the mean of the values; NaN where one of them is not defined, or there is none."""
    finite = defined(values)
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else math.nan


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    format: Format | None = number
    """Turns a value into text; None: the values are only drawn. `str` makes a column of text."""
    mark: Mark | None = None
    """Shape that a value has on the table's scale; an `interval` has two ends, a `tick` several
    values. None: it is not drawn."""
    heat: tuple[float, float] | None = None
    """Values of the palest and of the strongest shade of a cell."""
    key: str = ""
    """Key under which `rows_of` finds the values; empty: the column's name."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    name: str
    cells: Sequence[Any]
    """Raw values, one a column; None where there is none."""
    style: Literal["", "strong", "dim"] = ""
    note: str = ""
    """Stands beside the name."""
    starred: Collection[int] = ()
    """Columns whose values carry a star; the title says what it means."""


def rows_of(
    parts: Mapping[str, Metrics],
    columns: Sequence[Column],
    strong: Container[str] = (),
    label: Callable[[str], str] = str,
) -> list[Row]:
    """Returns a row for each part of the metrics, with the values that the columns name.

    Args:
        parts: numbers by name.
        columns: the table's.
        strong: names of rows that stand out.
        label: turns a name into the name of its row.
    """
    rows: list[Row] = []
    for name, entry in parts.items():
        cells = [entry.get(column.key or column.name) for column in columns]
        rows.append(Row(label(name), cells, "strong" if name in strong else ""))
    return rows


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers in rows, some of them drawn on a scale that the rows share."""

    title: str
    first: str
    """Head of the column of names."""
    columns: Sequence[Column]
    rows: Sequence[Row]
    _: KW_ONLY
    measure: str = ""
    """Name of the scale; empty where nothing is drawn."""
    origin: float = 0.0
    """Place of a dashed line, at chance or no difference. Bars start there."""
    ends: tuple[float, float] | None = None
    """Values that the scale has to hold; None: those that are drawn."""
    file: str = ""
    """Name of the picture in the run's folder; empty: there is none."""
    on: Literal["all", "page", "terminal"] = "all"
    """Media that show the table."""

    def cells(self, row: Row) -> list[tuple[Column, Any, str]]:
        """Returns the columns with a format, and the value and text of each in a row."""
        shown: list[tuple[Column, Any, str]] = []
        for i, (column, value) in enumerate(zip(self.columns, row.cells, strict=True)):
            if column.format is not None:
                star = "*" if i in row.starred else ""
                shown.append((column, value, column.format(value) + star))
        return shown

    def texts(self, row: Row) -> list[str]:
        """Returns the texts of a row."""
        return [text for _, _, text in self.cells(row)]

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to show."""
        return not self.rows

    @property
    def shown(self) -> list[Column]:
        """The columns with a format."""
        return [column for column in self.columns if column.format is not None]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points, and the line through them."""

    name: str
    x: Sequence[float | str]
    """Text puts the places at equal distances, whatever they say."""
    y: Sequence[float | None]
    line: Line = "solid"
    """`faint` is for values whose mean is drawn too; the last two draw points alone."""
    size: Sequence[float] = ()
    """Weights of the points, whose areas are their shares of the largest."""
    like: str = ""
    """Name of the curve whose color this one has."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves in one frame."""

    title: str
    across: str
    up: str
    curves: Sequence[Curve]
    _: KW_ONLY
    origin: float | None = None
    """Height of a dashed line."""
    diagonal: bool = False
    """A dashed line says x = y."""
    stacked: bool = False
    """The curves are shares of a whole, drawn as bars upon each other."""
    logarithmic: bool = False
    """Places across lie on a scale of powers of ten."""
    places: Sequence[str] = ()
    """Order of the places across where they are text; empty: that of the curves."""
    events: Sequence[tuple[float, str]] = ()
    """Places and names of lines across the frame."""
    with_numbers: bool = True
    """A page has the numbers in a table that unfolds."""
    file: str = ""
    """Name of the picture in the run's folder, which curves of the same name share."""

    @property
    def drawn(self) -> list[Curve]:
        """The curves that have a value."""
        return [curve for curve in self.curves if defined(curve.y)]

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to show."""
        return not self.drawn

    def hue(self, curve: Curve) -> int:
        """Returns the number of a curve's color."""
        names = list(dict.fromkeys(each.like or each.name for each in self.curves))
        return names.index(curve.like or curve.name)

    def numbers(self) -> Table:
        """Returns the values as a table, a row for each place."""
        shown = [curve for curve in self.drawn if curve.line != "faint"]
        values = [dict(zip(curve.x, curve.y, strict=True)) for curve in shown]
        across = list(dict.fromkeys(chain(*values)))
        if not any(isinstance(place, str) for place in across):
            across.sort()
        rows: list[Row] = []
        for place in across[:: math.ceil(len(across) / MOST_PLACES) or 1]:
            rows.append(Row(str(place), [by_place.get(place) for by_place in values]))
        columns = [Column(curve.name) for curve in shown]
        return Table(f"{self.title}: {self.up}", self.across, columns, rows)


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """A message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A pair that was ranked the wrong way round, or has another fault, and what moved it."""

    title: str
    source: str
    prompt: Sequence[ShownTurn]
    chosen: str
    rejected: str
    lengths: tuple[int, int]
    """Characters of the chosen and of the rejected response."""
    drivers: Table
    about_rejected: str = "the model prefers it"
    """What is said beside the rejected response; may be empty."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that a page shows on request, and a terminal never."""

    title: str
    blocks: Sequence[Block]


Block: TypeAlias = str | Table | Curves | Mistake | Fold
"""A string is a sentence about this run, printed everywhere."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of a report, with what stands under it."""

    id: str
    title: str
    note: str
    """Help in reading what follows, for a page."""
    blocks: Sequence[Block]
    on_terminal: bool = True


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A number that a reader looks for first."""

    name: str
    value: str
    note: str


def differences(
    title: str, measure: str, measured: Mapping[str, Metrics], label: Callable[[str], str] = str
) -> Table:
    """Returns a table of paired differences with their intervals.

    Args:
        title: stands over it.
        measure: what differs.
        measured: `value` and `ci95` by the name of the difference.
        label: turns a name into the name of its row.
    """
    interval_column = Column("95 %", signed_interval, "interval", key="ci95")
    columns = [Column("value", signed, "dot"), interval_column]
    return Table(
        title, "difference", columns, rows_of(measured, columns, (), label), measure=measure
    )
