"""The sections of a run's page about policies: what each strategy came to, and best of n."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

from panoply.config.laser import USES_VERIFIER
from panoply.report.page.charts import (
    Axis,
    Cell,
    Chart,
    Grid,
    Plot,
    Row,
    ends,
    given,
    marks,
    plot,
    shaded,
    span,
)
from panoply.report.page.summary import Figure
from panoply.report.tables import count, falling, interval, number

Section: TypeAlias = Mapping[str, Any]

QUALITY = "right responses"


def verdict(metrics: Section) -> str:
    """Returns what the first strategy came to, beside the best other; '' if unknown."""
    strategies = metrics.get("strategies", {})
    if not any(given([own.get("gain")]) for own in list(strategies.values())[:1]):
        return ""
    name, found = next(iter(strategies.items()))
    changes = {"above": "rose", "below": "fell"}
    change = changes.get(_side(found["gain_ci95"]), "cannot be told to have changed")
    gain = f"{number(found['gain'], signed=True)} {interval(found['gain_ci95'], signed=True)}"
    told = (
        f"With {name} the share of right responses to held-out prompts {change}: "
        f"{number(found['before'])} before, {number(found['after'])} after, {gain}."
    )
    rivals = [n for n in strategies if n not in (name, *USES_VERIFIER)]
    rivals.sort(key=lambda n: falling(strategies[n].get("after")))
    compared = metrics.get("differences", {})
    rival = next((n for n in rivals if f"{name} - {n}" in compared), None)
    if rival is None:
        return told
    own = compared[f"{name} - {rival}"]
    words = {"above": "beats", "below": "loses to"}
    outcome = words.get(_side(own["ci95"]), "cannot be told apart from")
    difference = f"{number(own['value'], signed=True)} {interval(own['ci95'], signed=True)}"
    return f"{told} It {outcome} the best of the others, {rival}: {difference}."


def figures(metrics: Section) -> list[Figure]:
    """Returns the key figures of the first strategy."""
    strategies = metrics.get("strategies", {})
    if not strategies:
        return []
    name, found = next(iter(strategies.items()))
    shown: list[Figure] = []
    if given([found.get("after")]):
        note = f"right responses to held-out prompts with {name}; {number(found['before'])} before"
        shown.append(Figure("Held-out quality", number(found["after"]), note))
    most = max(own["num_scored"] for own in strategies.values())
    note = f"responses that arms scored for {name}"
    if len(strategies) > 1:
        note += f"; the most that a strategy took is {count(most)}"
    shown.append(Figure("Scores paid", count(found["num_scored"]), note))
    shares = given_shares(metrics.get("choices", {}).get(name, {}))
    if shares:
        arm = max(shares, key=lambda one: shares[one])
        note = f"of the prompts went to {arm}, the arm that was chosen most"
        shown.append(Figure("Largest share", number(shares[arm], 2), note))
    return shown


def given_shares(choice: Section) -> dict[str, float]:
    """Returns the shares of arms that are known."""
    return {arm: share for arm, share in choice.get("shares", {}).items() if given([share])}


def held_out(strategies: Mapping[str, Section]) -> Plot:
    """Held-out quality of each policy by the rounds before the look."""
    curves = {
        name: {int(rounds): value for rounds, value in own.get("held_out", {}).items()}
        for name, own in strategies.items()
    }
    start = _first(own.get("before") for own in strategies.values())
    return plot("Held-out quality", "rounds", QUALITY, curves, origin=start)


def table(strategies: Mapping[str, Section]) -> Chart:
    """What each policy went from and to, and what its scores cost."""
    keys = ("before", "after")
    start = _first(own.get("before") for own in strategies.values())
    axis = Axis.over((own.get(key) for own in strategies.values() for key in keys), origin=start)
    rows = [
        Row(
            name,
            (
                *(number(own.get(key)) for key in keys),
                number(own.get("gain"), signed=True),
                interval(own.get("gain_ci95"), signed=True),
                count(own["rounds"]),
                count(own["num_scored"]),
            ),
            marks(axis, "before", own.get("before")) + marks(axis, "after", own.get("after")),
            span(axis, "link", own.get("before"), own.get("after")),
            "" if k else "strong",
        )
        for k, (name, own) in enumerate(strategies.items())
    ]
    return Chart(
        "What each strategy came to",
        "strategy",
        QUALITY,
        axis,
        ("before", "after", "gain", "95 %", "rounds", "scores paid"),
        rows,
        (("before", "before"), ("after", "after")),
    )


def differences(found: Mapping[str, Section]) -> Chart:
    """The first strategy less each other, on the same held-out prompts."""
    within = {name: ends(own.get("ci95")) for name, own in found.items()}
    axis = Axis.over(chain(*within.values(), (own.get("value") for own in found.values())))
    rows = [
        Row(
            name,
            (number(own.get("value"), signed=True), interval(within[name], signed=True)),
            marks(axis, "gate", own.get("value")),
            span(axis, "range", *within[name]),
        )
        for name, own in found.items()
    ]
    caption = "Differences on the same held-out prompts, behind all rounds"
    return Chart(caption, "difference", QUALITY, axis, ("value", "95 %"), rows)


def pickers(strategies: Mapping[str, Section]) -> Grid:
    """How often the best of a held-out prompt's samples is right, by who calls it the best."""
    picked = {name: own["best_of_n"] for name, own in strategies.items() if "best_of_n" in own}
    known = any(given(own.values()) for each in picked.values() for own in each.values())
    first: Section = next(iter(picked.values())) if known else {}
    rows = [
        (
            who,
            [
                _share(first[who].get("before")),
                *(_share(own[who]["after"]) for own in picked.values()),
            ],
        )
        for who in first
    ]
    columns = ["before", *(f"after {name}" for name in picked)]
    return Grid("Right choices among the samples of a held-out prompt", "who picks", columns, rows)


def by_n(found: Mapping[str, Mapping[str, Section]]) -> Plot:
    """Right choices of a best-of-n run by the number of samples."""
    curves = {
        name: {int(n): own["value"] for n, own in each.items()} for name, each in found.items()
    }
    start = _first(own.get("1", {}).get("value") for own in found.values())
    caption = "Right choices by the number of samples"
    return plot(caption, "n", "right choices", curves, evenly=True, origin=start)


def at_most_n(found: Mapping[str, Mapping[str, Section]]) -> Chart:
    """Right choices at the largest n with intervals, best first."""
    n = list(next(iter(found.values())))[-1]
    each = {name: own[n] for name, own in found.items()}
    within = {name: ends(own.get("ci95")) for name, own in each.items()}
    start = _first(own.get("1", {}).get("value") for own in found.values())
    axis = Axis.over(chain(*within.values(), (own["value"] for own in each.values())), origin=start)
    rows = [
        Row(
            name,
            (number(own["value"]), interval(within[name])),
            marks(axis, "rival", own["value"]),
            span(axis, "range", *within[name]),
        )
        for name, own in sorted(each.items(), key=lambda item: falling(item[1]["value"]))
    ]
    caption = f"Right choices among {n} samples"
    return Chart(caption, "who picks", "right choices", axis, ("value", "95 %"), rows)


def routed(counts: Mapping[str, int]) -> Grid:
    """How many prompts the bandit of a run gave to each arm."""
    rows = [(arm, [Cell(count(num))]) for arm, num in counts.items()]
    return Grid("Prompts that the bandit gave to each arm", "arm", ["prompts"], rows)


def _first(values: Iterable[float | None]) -> float:
    """Returns the first value that is defined, where a dashed line stands; 0 where none is."""
    return next(iter(given(values)), 0.0)


def _share(value: float | None) -> Cell:
    return shaded(value, number(value), 0.0, 1.0)


def _side(interval: Any) -> str:
    """Returns on which side of 0 an interval lies: above, below, or '' where it holds it."""
    both = given(interval or ())
    if len(both) < 2 or both[0] <= 0 <= both[1]:
        return ""
    return "above" if both[0] > 0 else "below"
