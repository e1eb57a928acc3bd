"""Tables in Markdown, whose names and texts are never markup."""

from __future__ import annotations

import re

from panoply.report.section import Table

SIGNS = re.compile(r"[\\`*\[\]<>|]")
"""Signs that open markup or end a cell. An underscore inside a word opens none."""


def as_markdown(table: Table) -> str:
    """Returns a table as a pipe table; what is only drawn is left out."""
    head = [plain(name) for name in (table.first, *(column.name for column in table.shown))]
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        line = [plain(row.name)]
        for column, _, text in table.cells(row):
            line.append(plain(text) if column.format is str else text)
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Returns a text on one line whose signs open no markup."""
    return SIGNS.sub(r"\\\g<0>", " ".join(text.split()))
