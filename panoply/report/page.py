"""Sections as one page of HTML that needs nothing else; names and texts are never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from panoply.report.figures import svg
from panoply.report.section import (
    Block,
    Column,
    KeyFigure,
    Row,
    Section,
    Table,
    count,
    defined,
    is_defined,
)

LONGEST = 3000
"""Characters of a text that the page holds; `mistakes.json` has all of it."""
OPENING = 280
"""Characters of a long text that stand unfolded."""
MOST_ROWS = 20
"""Rows of a drawn table that stand unfolded."""
MANY_COLUMNS = 8
"""Columns of a heat map from which on their names stand upright."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The head of a page, over its sections."""

    title: str
    kind: str
    commit: str
    verdict: str
    remarks: Sequence[str]
    warning: str
    key_figures: Sequence[KeyFigure]


class Item(NamedTuple):
    """A mark on a scale, in percent from its left end."""

    kind: str
    left: float
    width: float | None = None
    """None of a point."""


class Scale(NamedTuple):
    """A scale between two round numbers, which the rows of a table share."""

    ticks: Sequence[float]

    @classmethod
    def of(cls, table: Table) -> Scale:
        """Returns a scale that holds all that a table draws, and its origin."""
        drawn = [table.origin, *(table.ends or ())]
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                if column.mark in ("interval", "tick"):
                    drawn += defined(cell or ())
                elif column.mark:
                    drawn += defined([cell])
        low, high = min(drawn), max(drawn)
        locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
        ticks = locator.tick_values(low, high if high > low else low + 1.0)
        return cls([float(tick) for tick in ticks])

    def at(self, value: float) -> float:
        """Returns where a value stands, in percent."""
        return 100 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    @property
    def labels(self) -> list[tuple[float, str, bool]]:
        """Position and text of each tick, and whether it is one of the ends."""
        labels: list[tuple[float, str, bool]] = []
        for tick in self.ticks:
            text = f"{tick + 0.0:.2f}".rstrip("0").rstrip(".")
            labels.append((self.at(tick), text, tick in (self.ticks[0], self.ticks[-1])))
        return labels

    def items(self, table: Table, row: Row) -> list[Item]:
        """Returns the marks of a row, lines first, so that points lie on top."""
        spans: list[Item] = []
        points: list[Item] = []
        linked: list[float] = []
        for column, cell in zip(table.columns, row.cells, strict=True):
            match column.mark:
                case None:
                    continue
                case "interval":
                    spans += self._span("interval", defined(cell or ()))
                case "bar":
                    kind = "bar" if is_defined(cell) and cell >= table.origin else "bar against"
                    spans += self._span(kind, [table.origin, *defined([cell])])
                case "tick":
                    points = [Item("tick", self.at(value)) for value in defined(cell)] + points
                case kind:
                    points += [Item(kind, self.at(value)) for value in defined([cell])]
                    linked += defined([cell]) if kind in ("before", "after") else []
        return [*self._span("link", linked), *spans, *points]

    def _span(self, kind: str, ends: Sequence[float]) -> list[Item]:
        """Returns a line between two values, nothing where one of them is not defined."""
        if len(ends) < 2:
            return []
        low, high = sorted(map(self.at, ends))
        return [Item(kind, low, high - low)]


def render(page: Page, sections: Sequence[Section]) -> str:
    """Returns a page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "cut": cut, "breakable": breakable}
    return environment.get_template("page.html.jinja").render(
        page=page,
        sections=sections,
        is_text=is_text,
        kind_of=kind_of,
        scale_of=Scale.of,
        shade=shade,
        svg=svg,
        OPENING=OPENING,
        MOST_ROWS=MOST_ROWS,
        MANY_COLUMNS=MANY_COLUMNS,
    )


def is_text(column: Column) -> bool:
    """Returns whether a column holds text."""
    return column.format is str


def kind_of(block: Block) -> str:
    """Returns the name of a block's class."""
    return type(block).__name__


def shade(column: Column, row: Row, value: float | None) -> float | None:
    """Returns how strongly a cell is shaded in percent; None: it is not."""
    if column.heat is None or row.style == "dim" or value is None or not is_defined(value):
        return None
    low, high = column.heat
    return None if high <= low else 100 * min(1.0, max(0.0, (value - low) / (high - low)))


def cut(text: str, longest: int = LONGEST) -> str:
    """Returns a text without its middle where it is too long, and how much of it is missing."""
    missing = len(text) - longest
    if missing <= 0:
        return text
    head, tail = text[: 2 * longest // 3], text[-(longest // 3) :]
    return f"{head}\n… {count(missing)} characters left out …\n{tail}"


def breakable(name: str) -> Markup:
    """Returns a name that may be broken behind its hyphens and underscores."""
    text = str(escape(name))
    for sign in "-_/":
        text = text.replace(sign, f"{sign}<wbr>")
    return Markup(text)
