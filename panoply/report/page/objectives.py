"""The sections of a run's page about objectives: fit, gate weights, length, what moved a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from panoply.report.page.charts import (
    Axis,
    Cell,
    Chart,
    Grid,
    Row,
    ends,
    given,
    marks,
    shaded,
    span,
)
from panoply.report.page.summary import words
from panoply.report.tables import count, falling, number

Section: TypeAlias = Mapping[str, Any]

MOST_WEIGHTS = 15
"""Objectives that the heat map shows on their own when there are more of them."""
MOST_DRIVERS = 6
"""Objectives that explain a mistake one by one, the others being summed."""
SMALL = 0.05
"""Of the largest contribution; what contributes less is summed too."""


def fit(found: Mapping[str, Section]) -> Chart:
    """How well each objective is predicted on held-out ratings, best first."""
    names = sorted(found, key=lambda name: falling(found[name].get("spearman")))
    within = {name: ends(found[name].get("spearman_ci95")) for name in names}
    values = {name: found[name].get("spearman") for name in names}
    axis = Axis.over(chain(*within.values(), values.values()))
    rows: list[Row] = []
    for name in names:
        own, silent = found[name], found[name].get("signal") is False
        rest = (number(own.get(key)) for key in ("r2", "length_spearman", "prompt_spearman"))
        rows.append(
            Row(
                name,
                (number(values[name]), count(own.get("n")), *rest),
                spans=span(axis, "bar", 0.0, values[name]) + span(axis, "range", *within[name]),
                style="dim" if silent else "",
                note="no signal" if silent else "",
            )
        )
    return Chart(
        "How well each objective is predicted on held-out ratings",
        "objective",
        "Spearman",
        axis,
        ("value", "n", "R²", "length alone", "prompt alone"),
        rows,
        (("bar", "Spearman"), ("range", "95 %")),
    )


def left_out(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the objectives that were not fitted, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    return by_reason


def gate_weights(weights: Mapping[str, Mapping[str, float | None]]) -> Grid:
    """Mean weight of each objective in each domain, heaviest first; the small ones are summed."""
    domains = list(weights)
    names = dict.fromkeys(chain(*weights.values()))
    largest = {n: max(given(weights[d].get(n) for d in domains), default=0.0) for n in names}
    order = sorted(names, key=lambda name: -largest[name])
    shown, others = order[:MOST_WEIGHTS], order[MOST_WEIGHTS:]
    top = max(largest.values(), default=0.0)
    rows = [
        (name, [shaded(w, _short(w), 0.0, top) for d in domains for w in [weights[d].get(name)]])
        for name in shown
    ]
    if others:
        sums = [sum(given(weights[d].get(name) for name in others)) for d in domains]
        # Not shaded: a sum over objectives has another scale.
        rows.append((f"{len(others)} others together", [Cell(_short(total)) for total in sums]))
    return Grid("Mean weight of each objective, by domain", "objective", domains, rows)


def length(debias: Section) -> Chart:
    """Rank correlation of each objective with predicted length, before and after."""
    before = debias.get("before") or {}
    after = debias.get("after") or {}
    outside = (debias.get("heldout") or {}).get("after") or {}
    each = {n: [_size(own.get(n)) for own in (before, after, outside)] for n in before}
    axis = Axis.over(chain(*each.values()))
    rows = [
        Row(
            name,
            tuple(map(number, values)),
            marks(axis, "held", values[2])
            + marks(axis, "before", values[0])
            + marks(axis, "after", values[1]),
            span(axis, "link", values[0], values[1]),
        )
        for name, values in sorted(each.items(), key=lambda item: falling(item[1][0]))
    ]
    return Chart(
        "How far each objective follows length",
        "objective",
        "|Spearman| with predicted length",
        axis,
        ("before", "after", "held out"),
        rows,
        (("before", "before"), ("after", "after, in sample"), ("held", "after, held out")),
    )


def strata(accuracy: Mapping[str, Section]) -> Chart:
    """Accuracy where the chosen response is the longer or the shorter one, before and after."""
    each = {
        f"{words(scorer)}, {words(side)}": [own.get(t, {}).get(side) for t in ("before", "after")]
        for scorer, own in accuracy.items()
        for side in ("chosen_longer", "chosen_shorter")
    }
    axis = Axis.over(chain(*each.values()), origin=0.5)
    rows = [
        Row(
            name,
            tuple(map(number, values)),
            marks(axis, "before", values[0]) + marks(axis, "after", values[1]),
            span(axis, "link", *values),
        )
        for name, values in each.items()
    ]
    return Chart(
        "Accuracy by which response is longer",
        "scorer",
        "accuracy",
        axis,
        ("before", "after"),
        rows,
        (("before", "before"), ("after", "after")),
    )


def drivers(contributions: Sequence[Section], axis: Axis) -> Chart:
    """What moved the gate in one pair, in log odds of the chosen response, the largest first."""
    parts = [(own["objective"], own["weight"], own["log_odds"]) for own in contributions]
    least = SMALL * max((abs(odds) for *_, odds in parts), default=0.0)
    large = sum(abs(odds) > least for *_, odds in parts)
    shown, others = parts[: min(large, MOST_DRIVERS)], parts[min(large, MOST_DRIVERS) :]
    if others:
        weight, odds = (sum(part[i] for part in others) for i in (1, 2))
        shown.append((f"{len(others)} others together", weight, odds))
    rows = [
        Row(
            name,
            (number(odds, 2, signed=True), number(weight, 2)),
            spans=span(axis, "toward" if odds > 0 else "against", 0.0, odds),
        )
        for name, weight, odds in shown
    ]
    columns = ("log odds", "gate weight")
    return Chart("What moved the gate", "objective", "rejected ← → chosen", axis, columns, rows)


def drivers_axis(mistakes: Sequence[Section]) -> Axis:
    """Returns one scale for the explanations of all mistakes, so that their bars compare."""
    parts = given(own["log_odds"] for found in mistakes for own in found["contributions"])
    size = max(map(abs, parts), default=1.0)
    return Axis.over((-size, size))


def _size(value: float | None) -> float | None:
    return None if value is None else abs(value)


def _short(value: float | None) -> str:
    """Returns a weight without its leading zero, so that many fit beside each other."""
    return number(value, 2).removeprefix("0")
