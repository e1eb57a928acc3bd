"""Sections on data files: their layouts, rows, parts, quarantine and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from panoply.data.overview import EXAMPLES, Overview, ShownRow
from panoply.data.schema import PARTS, Prompt
from panoply.report.section import Block, Column, Row, Section, Table, count

MOST_SUBSETS = 20
"""Subsets that are listed, most frequent first."""
MOST_CHARACTERS = 600
"""Characters of a text that is shown by role."""


def sections(
    overview: Overview, render: Callable[[Prompt, str], str] | None = None
) -> list[Section]:
    """Returns what is shown of an overview.

    Args:
        overview: of the files.
        render: writes a prompt and a response as a chat template does; None: turns by role.
    """
    blocks: list[Block] = [_files(overview), *overview.lines, _parts(overview), _subsets(overview)]
    blocks.append(_quarantine(overview))
    shown = [_row(number, row, render) for number, row in enumerate(overview.rows, start=1)]
    return [
        Section("data", "Data", "", [block for block in blocks if not _is_empty(block)]),
        Section("rows", "Rows", "", shown),
    ]


def _is_empty(block: Block) -> bool:
    return isinstance(block, Table) and block.is_empty


def _files(overview: Overview) -> Table:
    columns = [Column("layout", str), Column("ignored columns", str)]
    rows = [
        Row(file.label, [file.layout, ", ".join(file.ignored) or "none"]) for file in overview.files
    ]
    return Table(f"files, read as {overview.kind}", "file", columns, rows)


def _parts(overview: Overview) -> Table:
    by_part: Counter[tuple[str, str]] = Counter()
    for (source, _, part), num in overview.num_rows.items():
        by_part[source, part] += num
    rows: list[Row] = []
    for source in sorted({source for source, _ in by_part}):
        nums = [by_part[source, part] for part in PARTS]
        prompts = [len(overview.prompts.get((source, part), ())) for part in PARTS]
        rows.append(Row(source, [sum(nums), *nums]))
        rows.append(Row("  of prompts", [sum(prompts), *prompts], "dim"))
    columns = [Column(name, count) for name in ("rows", *PARTS)]
    return Table("rows and their prompts by source and part", "source", columns, rows)


def _subsets(overview: Overview) -> Table:
    by_subset: Counter[tuple[str, str]] = Counter()
    for (source, subset, _), num in overview.num_rows.items():
        if subset:
            by_subset[source, subset] += num
    most = by_subset.most_common(MOST_SUBSETS)
    rows = [Row(subset, [source, num]) for (source, subset), num in most]
    title = f"subsets (the {len(most)} largest of {len(by_subset)})"
    return Table(title, "subset", [Column("source", str), Column("rows", count)], rows)


def _quarantine(overview: Overview) -> Table:
    ordered = sorted(overview.quarantined.items(), key=lambda item: -len(item[1]))
    rows = [Row(reason, [len(at), ", ".join(at[:EXAMPLES])]) for reason, at in ordered]
    columns = [Column("rows", count), Column("for example", str)]
    return Table("quarantine: rows that are left out", "reason", columns, rows)


def _row(number: int, row: ShownRow, render: Callable[[Prompt, str], str] | None) -> str:
    lines = [f"{number}. {row.title}"]
    if render is None:
        lines += (f"  {turn['role']}: {_cut(turn['content'])}" for turn in row.prompt)
        lines += (f"  {name}: {_cut(text)}" for name, text in row.responses.items())
    else:
        lines += _rendered(row, render)
    lines += (f"  {name}: {value}" for name, value in row.labels.items())
    return "\n".join(lines)


def _rendered(row: ShownRow, render: Callable[[Prompt, str], str]) -> Sequence[str]:
    responses: Mapping[str, str] = row.responses or {"prompt": ""}
    return [f"  {name}:\n{render(row.prompt, text)}" for name, text in responses.items()]


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} ... ({len(text):,} characters)"
