"""A page of ratios over commits: `python -m benchmarks.release_page [--out benchmarks/releases]`.

Reads the files that `benchmarks.release` wrote and writes `OUT/index.html`, which needs nothing
else. Commits stand in the order of git's history, from which the page takes the place of each;
those that are not before the one that is checked out are named and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tyro

from benchmarks.release import PARTS, ROOT, git
from panoply.files import write_whole
from panoply.report.page import Page, render
from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Line,
    Row,
    Section,
    Table,
    number,
    words,
)

Release: TypeAlias = Mapping[str, Any]
"""What is known of a commit: the content of its file."""
SHORT = 8
"""Characters of a hash."""
MOST_COUNTED = 6
"""Commits of the table of counts, the last ones."""
DRAWN: tuple[tuple[str, str, Line], ...] = (
    ("ratio", "ratio", "solid"),
    ("min", "least", "hollow"),
    ("max", "largest", "hollow"),
    ("ideal", "ideal", "dashed"),
    ("at_least", "bar, at least", "dashed"),
    ("at_most", "bar, at most", "dashed"),
)
"""Keys of a figure, and the name and line of the curve of each."""
ABOUT = (
    "Each point is the median over repeats, in which both sides took turns on one machine; hollow "
    "points are the extremes. Bars were set for the larger sizes of RESULTS.md: what counts here "
    "is the course over commits."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePageOptions:
    """Where the files are."""

    out: Path = Path("benchmarks/releases")
    """Folder of the releases' files, and of the page."""


def main(options: ReleasePageOptions) -> None:
    """Writes the page.

    Raises:
        FileNotFoundError: there is no release.
    """
    releases = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    if not releases:
        raise FileNotFoundError(f"{options.out} has no release: run `python -m benchmarks.release`")
    history = git(ROOT, "rev-list", "--topo-order", "--reverse", "HEAD").splitlines()
    file = options.out / "index.html"
    write_whole(file, page_of(releases, history))
    print(f"wrote {file}")


def page_of(releases: Iterable[Release], history: Sequence[str]) -> str:
    """Returns the page as HTML.

    Args:
        releases: in any order.
        history: commits, the oldest first.
    """
    by_commit = {release["commit"]: release for release in releases}
    ordered = [by_commit[commit] for commit in history if commit in by_commit]
    remarks = [ABOUT]
    if outside := sorted(by_commit.keys() - set(history)):
        names = ", ".join(commit[:SHORT] for commit in outside)
        remarks.append(f"Not in the history of the commit that is checked out: {names}.")
    head = Page(
        title="Ratios over commits",
        kind="benchmark",
        commit=ordered[-1]["commit"] if ordered else "",
        verdict="",
        remarks=remarks,
        warning="",
        key_figures=[],
    )
    sections = [commits(ordered), latest(ordered)] if ordered else []
    sections += [course(part.name, part.flags, ordered) for part in PARTS if part.bars]
    return render(head, [*sections, counts(ordered)])


def short(release: Release) -> str:
    """Returns the short hash of a release."""
    return release["commit"][:SHORT]


def figures_of(release: Release, part: str) -> Mapping[str, Mapping[str, float]]:
    """Returns the figures of a part, none where it is missing."""
    return release["parts"].get(part, {}).get("figures", {})


def commits(releases: Sequence[Release]) -> Section:
    """Returns what was measured, and where."""
    columns = [Column(name, str) for name in ("date", "subject", "processor", "torch", "load")]
    rows: list[Row] = []
    for place, release in reversed([*enumerate(releases, 1)]):
        machine = release["machine"]
        loads = [part["load"] for part in release["parts"].values()]
        load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "-"
        processor = f"{machine['cores']} x {machine['cpu']}"
        cells = [release["date"][:10], release["subject"], processor, machine["torch"], load]
        rows.append(Row(f"{place}: {short(release)}", cells))
    table = Table("Newest first; load at the start of the parts", "commit", columns, rows)
    return Section("commits", "Commits", "", [table])


def latest(releases: Sequence[Release]) -> Section:
    """Returns the ratios of the newest commit beside those of the one before, and what it lacks."""
    now, before = releases[-1], releases[-2] if len(releases) > 1 else None
    columns = [
        Column("ratio"),
        Column("least"),
        Column("largest"),
        Column("ideal"),
        Column("share of ideal"),
        Column("bar", str),
        Column("before"),
    ]
    rows: list[Row] = []
    blocks: list[Block] = []
    for part, entry in now["parts"].items():
        if "missing" in entry:
            blocks.append(f"{part} is missing: {entry['missing']}")
            continue
        earlier = figures_of(before, part) if before else {}
        for name, figure in entry["figures"].items():
            if "ratio" in figure:
                cells = [figure.get(key) for key in ("ratio", "min", "max", "ideal")]
                share = figure["ratio"] / figure["ideal"] if "ideal" in figure else None
                cells += [share, bar_of(figure), earlier.get(name, {}).get("ratio")]
                rows.append(Row(words(name), cells, "strong" if misses(figure) else "", part))
    title = f"Ratios of {short(now)}; bold: not at its bar"
    table = Table(title, "ratio", columns, rows)
    return Section("latest", "The newest commit", "", [table, *blocks])


def bar_of(figure: Mapping[str, float]) -> str:
    """Returns the bar of a figure as text."""
    if "at_least" in figure:
        return f"at least {number(figure['at_least'], 2)}"
    return f"at most {number(figure['at_most'], 2)}" if "at_most" in figure else ""


def misses(figure: Mapping[str, float]) -> bool:
    """Returns whether a ratio is on the wrong side of its bar."""
    low, high = figure.get("at_least", -math.inf), figure.get("at_most", math.inf)
    return not low <= figure["ratio"] <= high


def course(part: str, flags: str, releases: Sequence[Release]) -> Section:
    """Returns the ratios of a part over commits, with extremes, ideal and bar."""
    places = range(1, len(releases) + 1)
    measured = [figures_of(release, part) for release in releases]
    names = dict.fromkeys(name for figures in measured for name in figures)
    blocks: list[Block] = []
    for name in names:
        values = [figures.get(name, {}) for figures in measured]
        curves = [
            Curve(title, places, [figure.get(key) for figure in values], line)
            for key, title, line in DRAWN
        ]
        blocks.append(Curves(words(name), "number of the commit", "ratio", curves))
    for release in releases:
        if missing := release["parts"].get(part, {}).get("missing"):
            blocks.append(f"Missing at {short(release)}: {missing}")
    return Section(part, words(part).capitalize(), f"Sizes today: {flags}", blocks)


def counts(releases: Sequence[Release]) -> Section:
    """Returns the counts of the last commits beside the least that there can be."""
    shown = releases[-MOST_COUNTED:]
    measured = [figures_of(release, "counts") for release in shown]
    names = dict.fromkeys(name for figures in measured for name in figures)
    rows: list[Row] = []
    for name in names:
        values = [figures.get(name, {}).get("value") for figures in measured]
        ideals = [figures[name].get("ideal") for figures in measured if name in figures]
        rows.append(Row(name, [*values, ideals[-1]]))
    columns = [Column(short(release), counted) for release in shown]
    table = Table("Counts", "count", [*columns, Column("least", counted)], rows)
    note = "No machine moves these: `tests/test_counts.py` holds the code to them."
    return Section("counts", "Counts", note, [table])


def counted(value: float | None) -> str:
    """Returns a count, or a share, as text."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


if __name__ == "__main__":
    main(
        tyro.cli(ReleasePageOptions, prog="python -m benchmarks.release_page", description=__doc__)
    )
