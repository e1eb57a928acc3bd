"""The sections of a run's page about scorers: accuracy, differences, calibration, new sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeAlias

from panoply.measure.boards import LEVELS, STYLES
from panoply.report.page.charts import (
    Axis,
    Cell,
    Chart,
    Curve,
    Grid,
    Point,
    Row,
    curve,
    ends,
    given,
    lowest_share,
    marks,
    shaded,
    span,
)
from panoply.report.page.summary import words
from panoply.report.tables import (
    BALANCED,
    BY_SOURCE,
    INTERVAL,
    LEADS,
    count,
    falling,
    interval,
    lead,
    number,
    ranked,
)

Section: TypeAlias = Mapping[str, Any]

SHAPES: dict[str, Point] = {"gate": "gate", "best_fixed": "rival", "linear_bt": "other"}
"""What marks the scorers that are fitted without each source in turn."""


def baselines(pairs: Section) -> Chart:
    """Every scorer's length-balanced accuracy with its interval, best first."""
    macros = {name: pairs[name].get("macro", {}) for name in ranked(pairs)}
    within = {name: ends(macro.get(INTERVAL)) for name, macro in macros.items()}
    each = {
        name: [own.get(BALANCED) for own in pairs[name].get("per_source", {}).values()]
        for name in macros
    }
    axis = Axis.over(chain(*within.values(), *each.values()), origin=0.5)
    rows = [
        Row(
            words(name),
            (number(macro.get(BALANCED)), interval(within[name]), number(macro.get("accuracy"))),
            marks(axis, "tick", *each[name])
            + marks(axis, "gate" if name in LEADS else "rival", macro.get(BALANCED)),
            span(axis, "range", *within[name]),
            "strong" if name in LEADS else "",
        )
        for name, macro in macros.items()
    ]
    return Chart(
        "Every scorer on held-out pairs, mean over sources",
        "scorer",
        "length-balanced accuracy",
        axis,
        ("value", "95 %", "plain accuracy"),
        rows,
        (
            ("gate", "score" if "score" in macros else "gate"),
            ("rival", "others"),
            ("range", "95 %"),
            ("tick", "one source"),
        ),
    )


def comparisons(found: Section) -> Chart:
    """Paired differences between the gate and its rivals."""
    within = {name: ends(own.get("ci95")) for name, own in found.items()}
    axis = Axis.over(chain(*within.values(), (own.get("value") for own in found.values())))
    rows = [
        Row(
            words(name),
            (number(own.get("value"), signed=True), interval(within[name], signed=True)),
            marks(axis, "gate", own.get("value")),
            span(axis, "range", *within[name]),
        )
        for name, own in found.items()
    ]
    return Chart(
        "Differences on the same pairs, mean over sources",
        "difference",
        "length-balanced accuracy",
        axis,
        ("value", "95 %"),
        rows,
    )


def by_source(pairs: Section) -> Grid:
    """Length-balanced accuracy of the chief scorers in each source."""
    names = [n for n in ranked(pairs) if n in BY_SOURCE and pairs[n].get("per_source")]
    sources = dict.fromkeys(source for name in names for source in pairs[name]["per_source"])
    rows = [
        (
            source,
            [_share(pairs[name]["per_source"].get(source, {}).get(BALANCED)) for name in names],
        )
        for source in sources
    ]
    return Grid("Length-balanced accuracy by source", "source", list(map(words, names)), rows)


def calibration(pairs: Section) -> Grid:
    """How far stated confidences can be believed, by log loss."""
    names = sorted(pairs, key=lambda name: _rising(pairs[name].get("log_loss")))
    keys = ("log_loss", "ece", "ece_floor", "temperature", "ties")
    rows = [(words(name), [Cell(number(pairs[name].get(key))) for key in keys]) for name in names]
    columns = ["log loss", "ECE", "ECE by chance", "temperature", "ties"]
    return Grid("Probabilities on all held-out pairs", "scorer", columns, rows)


def reliability(curves: Mapping[str, Section]) -> list[Curve]:
    """Stated confidence against accuracy, one small plot a scorer, all on the same scale."""
    low = lowest_share(chain(*(found["accuracy"] for found in curves.values())))
    return [curve(name, found, low) for name, found in curves.items()]


def bins(curves: Mapping[str, Section]) -> Grid:
    """The numbers of the reliability plots: pairs, stated confidence and accuracy by bin."""
    rows: list[tuple[str, list[Cell]]] = []
    for name, found in curves.items():
        columns = zip(found["count"], found["confidence"], found["accuracy"], strict=True)
        rows += [
            (words(name), [Cell(count(n)), Cell(number(stated)), Cell(number(right))])
            for n, stated, right in columns
            if n
        ]
    columns = ["pairs", "stated confidence", "won"]
    return Grid("Stated confidence and accuracy by bin", "scorer", columns, rows)


def leave_one_out(sources: Section) -> Chart:
    """Length-balanced accuracy on sources that the weights never saw."""
    names = [name for name in SHAPES if any(name in own for own in sources.values())]
    axis = Axis.over((own.get(name) for own in sources.values() for name in names), origin=0.5)
    rows = [
        Row(
            source,
            (*(number(own.get(name)) for name in names), count(own.get("n"))),
            # The gate last, so that it lies on top.
            tuple(m for name in reversed(names) for m in marks(axis, SHAPES[name], own.get(name))),
        )
        for source, own in sources.items()
    ]
    return Chart(
        "Each source, judged by weights that never saw it",
        "source",
        "length-balanced accuracy",
        axis,
        (*map(words, names), "n"),
        rows,
        tuple((SHAPES[name], words(name)) for name in names),
    )


def planted(found: Section) -> Chart:
    """The gate between the best fixed weights and the oracle that planted the truth."""
    scorers = [name for name in ("oracle", "gate", "best_fixed") if name in found]
    axis = Axis.over((found[name] for name in scorers), origin=0.5)
    rows = [
        Row(
            words(name),
            (number(found[name]),),
            spans=span(axis, "bar", 0.5, found[name]),
            style="strong" if name == "gate" else "",
        )
        for name in scorers
    ]
    caption = "Accuracy on held-out pairs of the planted world"
    return Chart(caption, "scorer", "accuracy", axis, ("value",), rows)


def rmbench(board: Section) -> list[Grid]:
    """RM-Bench's numbers, best average first, and the wins by style of what the run is about."""
    scorers = board["scorers"]
    chief = lead(scorers)
    domains = list(next(iter(scorers.values()))["by_domain"])
    rows = [
        (
            words(name),
            [_share(scorers[name].get(level)) for level in LEVELS]
            + [_share(scorers[name]["by_domain"][domain].get("average")) for domain in domains],
        )
        for name in sorted(scorers, key=lambda name: falling(scorers[name].get("average")))
    ]
    own = [found["matrix"] for found in scorers[chief]["by_domain"].values()]
    styles = [
        (style, [_share(_mean([matrix[i][j] for matrix in own])) for j in range(len(STYLES))])
        for i, style in enumerate(STYLES)
    ]
    return [
        Grid("RM-Bench, mean over domains", "scorer", [*LEVELS, *domains], rows),
        Grid(
            f"Wins of the {chief} by style, mean over domains",
            "chosen \\ rejected",
            STYLES,
            styles,
        ),
    ]


def _share(value: float | None) -> Cell:
    """Returns an accuracy, shaded from chance to 1."""
    return shaded(value, number(value), 0.5, 1.0)


def _rising(value: float | None) -> float:
    """Returns a sort key: smallest first, what is not defined last."""
    return min([*given([value]), math.inf])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
