"""Sections on a terminal, for 80 columns.

Names come from files, so all text is passed as `Text`: square brackets in it are no markup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from panoply.report.progress import Terminal
from panoply.report.section import Section, Table

MANY_ROWS = 20
"""Rows from which on those that are dim share one line."""
LONG_NAMES = 5
"""Columns from which on their names break at every word."""
MANY_COLUMNS = 7
"""Columns from which on there are no gaps between them."""


def print_sections(sections: Iterable[Section], console: Terminal) -> None:
    """Prints sentences and tables, each followed by an empty line."""
    for section in sections:
        if not section.on_terminal:
            continue
        for block in section.blocks:
            if isinstance(block, str):
                console.print(Text(block))
                console.print()
            elif isinstance(block, Table) and block.on != "page" and not block.is_empty:
                console.print(as_rich(block))
                console.print()


def as_rich(table: Table) -> RenderableType:
    """Returns a table for the terminal; what is only drawn is left out."""
    names = [column.name for column in table.shown]
    if len(names) >= LONG_NAMES:
        names = [name.replace(" ", "\n").replace("\n%", " %") for name in names]
    texts = [column.format is str for column in table.shown]
    rich = empty_table(table.title, table.first, names, texts)
    silent = [row for row in table.rows if row.style == "dim"]
    folded = silent if len(table.rows) > MANY_ROWS else []
    for row in table.rows:
        if row not in folded:
            name = f"{row.name} ({row.note})" if row.note else row.name
            style = {"strong": "bold", "dim": "dim", "": ""}[row.style]
            add_row(rich, name, *table.texts(row), style=style)
    if len(names) >= MANY_COLUMNS:
        rich.padding = 0
        rich.columns[0].min_width = min(20, max(len(row.name) for row in table.rows))
    if not folded:
        return rich
    named = [f"{row.name} {table.texts(row)[0]}" for row in folded]
    return Group(rich, Text(f"{folded[0].note}: {', '.join(named)}", style="dim"))


def empty_table(
    title: str, first: str, columns: Collection[str], texts: Sequence[bool] = ()
) -> RichTable:
    """Returns a table without rows.

    Args:
        title: stands over it.
        first: what the rows are.
        columns: names of the others.
        texts: whether a column holds text; empty: all hold numbers.
    """
    table = RichTable(
        title=Text(title, style="bold", no_wrap=True, overflow="ignore"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    table.add_column(Text(first), overflow="fold")
    for name, is_text in zip(columns, texts or [False] * len(columns), strict=True):
        justify = "left" if is_text else "right"
        text = Text(name)
        table.add_column(
            text, justify=justify, vertical="bottom", overflow="fold", no_wrap=not is_text
        )
    return table


def add_row(table: RichTable, *cells: str, style: str = "") -> None:
    """Adds a row whose square brackets are no markup."""
    table.add_row(*(Text(cell) for cell in cells), style=style)
