"""The sections of a run's page about its bandit: arms, how sure it was, alarms, and signals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from panoply.config.laser import FIXED
from panoply.report.page.charts import (
    Axis,
    Cell,
    Chart,
    Grid,
    Plot,
    Row,
    Span,
    ends,
    given,
    hue,
    marks,
    plot,
    shaded,
    span,
)
from panoply.report.tables import count, falling, interval, number

Section: TypeAlias = Mapping[str, Any]
Rounds: TypeAlias = Sequence[Section]

MOST_BARS = 20
"""Bars of shares; a longer run has one for several rounds."""
TARGETS = {
    "verifier": (
        "Signals and the verifier",
        "how well the chosen arm orders right above wrong responses",
    ),
    "held_out": ("Signals and the gain of a round", "how far the round raised held-out quality"),
}
"""What signals are held against, as a caption and in words."""


def choosers(choices: Iterable[str]) -> list[str]:
    """Returns the strategies that chose among arms."""
    return [name for name in choices if not name.startswith(FIXED)]


def overview(choices: Mapping[str, Section]) -> Grid:
    """Share of the prompts that got each arm, by strategy."""
    arms = list(next(iter(choices.values()))["shares"])
    rows = [(name, [_share(own["shares"][a]) for a in arms]) for name, own in choices.items()]
    return Grid("Share of the prompts that got each arm", "strategy", arms, rows)


def by_source(choice: Section) -> Grid:
    """Share of each arm within each source."""
    shares = choice["shares_by_source"]
    rows = [
        (source, [_share(own[arm]) for arm in choice["shares"]]) for source, own in shares.items()
    ]
    return Grid("Share of each arm, by source", "source", list(choice["shares"]), rows)


def by_round(history: Rounds, choice: Section) -> Chart:
    """Share of each arm by round, with the alarms; rounds of a long run are taken together."""
    arms = list(choice["shares"])
    size = max(1, math.ceil(len(history) / MOST_BARS))
    axis = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), 0.0)
    rows: list[Row] = []
    for block in (history[i : i + size] for i in range(0, len(history), size)):
        first, last = block[0]["step"], block[-1]["step"]
        shares = [_mean([row.get(f"share/{arm}") for row in block]) for arm in arms]
        starts = [sum(given(shares[:k])) for k in range(len(arms))]
        told = [own["name"] for own in choice["alarms"] if first <= own["round"] <= last]
        rows.append(
            Row(
                str(first) if first == last else f"{first} to {last}",
                tuple(number(share, 2) for share in shares),
                spans=tuple(
                    Span(100 * start, 100 * share, hue(k))
                    for k, (start, share) in enumerate(zip(starts, shares, strict=True))
                    if share is not None
                ),
                note=", ".join(dict.fromkeys(told)),
            )
        )
    return Chart(
        "Share of each arm, by round",
        "round",
        "share",
        axis,
        arms,
        rows,
        tuple((hue(k), arm) for k, arm in enumerate(arms)),
    )


def curves(history: Mapping[str, Rounds], choices: Mapping[str, Section]) -> list[Plot]:
    """What the bandits' logs show round by round; what was not measured is left out.

    Args:
        history: `history.json`.
        choices: the strategies that are shown.
    """
    wanted = (
        ("Uncertainty", "entropy of the choice", "uncertainty"),
        ("Regret", "reward lost so far", "regret"),
        ("Disagreement", "share of pairs that arms order differently", "disagreement"),
    )
    each = {name: history[name] for name in choices if name in history}
    plots = [
        plot(caption, "round", measure, {name: _curve(rows, key) for name, rows in each.items()})
        for caption, measure, key in wanted
    ]
    for name in choosers(each)[:1]:
        errors = {arm: _curve(each[name], f"error/{arm}") for arm in choices[name]["shares"]}
        caption = f"How well {name} knows each arm"
        plots.append(plot(caption, "round", "standard error of its mean reward", errors))
    return [found for found in plots if found.traces]


def alarms(choices: Mapping[str, Section], strategies: Mapping[str, Section]) -> Grid:
    """Every alarm, and what came of it."""
    rows = [
        (
            f"{own['name']}, round {own['round']}",
            [
                Cell(name),
                Cell(own["message"]),
                Cell(followed(own, choice["suspended"], strategies.get(name, {}))),
            ],
        )
        for name, choice in choices.items()
        for own in choice["alarms"]
    ]
    return Grid("Alarms", "alarm", ["strategy", "message", "what followed"], rows)


def followed(alarm: Section, sidelined: Sequence[Section], strategy: Section) -> str:
    """Returns in words what came of an alarm.

    Args:
        alarm: of `choices`.
        sidelined: arms that were set aside, of the same strategy.
        strategy: what the strategy came to.
    """
    ran_on = strategy.get("rounds", 0) > alarm["round"] + 1
    if alarm["action"] == "suspend":
        away = next((o for o in sidelined if o["reason"].startswith(f"{alarm['name']}:")), None)
        if away is not None:
            return f"{away['arm']} was set aside until round {away['until']}"
        return f"{alarm['arm']} was to be set aside" + ("" if ran_on else "; no round came after")
    if alarm["action"] == "stop" and strategy.get("paused", ""):
        return f"the strategy stopped before {strategy['paused'].partition(':')[0]}"
    if alarm["action"] == "stop":
        return "asked to stop; the run was continued" if ran_on else "no round came after"
    return "a warning: the run went on" if ran_on else "a warning: no round came after"


def failures(choices: Mapping[str, Section]) -> Grid:
    """Arms that gave no scores."""
    rows = [
        (
            own["arm"],
            [
                Cell(name),
                Cell(str(own["round"])),
                Cell(count(own["num_failed"])),
                Cell(own["failure"]),
            ],
        )
        for name, choice in choices.items()
        for own in choice["failures"]
    ]
    return Grid("Arms that failed", "arm", ["strategy", "round", "prompts", "first reason"], rows)


def sidelined(choices: Mapping[str, Section]) -> Grid:
    """Arms that could not be chosen for a while."""
    rows = [
        (
            own["arm"],
            [Cell(name), Cell(f"{own['round']} to {own['until'] - 1}"), Cell(own["reason"])],
        )
        for name, choice in choices.items()
        for own in choice["suspended"]
    ]
    return Grid("Arms that were set aside", "arm", ["strategy", "rounds", "reason"], rows)


def signals(found: Mapping[str, Section], target: str, applied: str) -> Chart:
    """How each signal ranks decisions beside what is wanted, best first; no rows where none does.

    Args:
        found: by signal, with the target itself, which is left out.
        target: of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    others = {name: own for name, own in found.items() if name != target}
    if not any(given([own.get("spearman")]) for own in others.values()):
        others = {}
    within = {name: ends(own.get("ci95")) for name, own in others.items()}
    axis = Axis(-1.0, 1.0, (-1.0, -0.5, 0.0, 0.5, 1.0), 0.0)
    rows = [
        Row(
            name,
            (number(own.get("spearman"), 2), interval_of(within[name]), count(own.get("n"))),
            marks(axis, "gate" if name == applied else "rival", own.get("spearman")),
            span(axis, "range", *within[name]),
            "strong" if name == applied else "" if given([own.get("spearman")]) else "dim",
            ", ".join(filter(None, ("applied" if name == applied else "", why_not(own)))),
        )
        for name, own in sorted(others.items(), key=lambda item: falling(item[1].get("spearman")))
    ]
    return Chart(TARGETS[target][0], "signal", "Spearman", axis, ("value", "95 %", "n"), rows)


def interval_of(both: tuple[float | None, float | None]) -> str:
    """Returns an interval as text; '-' where it is not defined."""
    return interval(both, signed=True) if len(given(both)) == 2 else "-"


def why_not(found: Section) -> str:
    """Returns why a signal has no correlation; '' where it has one."""
    if given([found.get("spearman")]):
        return ""
    return "does not vary" if found.get("n") else "not measured"


def meaning(found: Mapping[str, Section], target: str, applied: str) -> str:
    """Returns in plain words what the correlations with a target say.

    Args:
        found: by signal, with the target itself, which is left out.
        target: of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    what = TARGETS[target][1]
    others = {name: own for name, own in found.items() if name != target}
    if not any(given([own.get("spearman")]) for own in others.values()):
        if any(own.get("n") for own in others.values()):
            return f"No signal can be held against {what}: one of the two never varied."
        return f"No signal can be held against {what}: it was not measured together with any."
    sides = {name: _side(own) for name, own in others.items()}
    told: list[str] = []
    if applied == target:
        told.append("This is what the bandit was rewarded with.")
    if applied in others:
        own = others[applied]
        outcome = {
            "with": f"which goes with {what}: to chase the one is to chase the other.",
            "against": f"which goes against {what}: what it chases is not what is wanted.",
            "": f"of which {count(own.get('n'))} decisions cannot tell if it goes with {what}.",
            "-": f"which has no correlation with {what} here ({why_not(own)}).",
        }
        told.append(f"The bandit was rewarded with {applied}, {outcome[sides[applied]]}")
    for side, words in (("with", "goes with"), ("against", "goes against")):
        names = [name for name, own in sides.items() if own == side and name != applied]
        if names:
            verb = words if len(names) == 1 else words.replace("goes", "go")
            told.append(f"{' and '.join(names)} {verb} {'it' if applied in others else what}.")
    if "with" not in sides.values() and "against" not in sides.values():
        told.append("No signal can be told from chance: every interval holds 0.")
    return " ".join(told)


def _side(own: Section) -> str:
    """Returns '-' without a correlation, '' where its interval holds 0, else its direction."""
    if not given([own.get("spearman")]):
        return "-"
    both = given(own.get("ci95") or ())
    if len(both) < 2 or both[0] <= 0 <= both[1]:
        return ""
    return "with" if both[0] > 0 else "against"


def _curve(rows: Rounds, key: str) -> dict[int, float | None]:
    return {row["step"]: row.get(key) for row in rows}


def _share(value: float | None) -> Cell:
    return shaded(value, number(value, 2), 0.0, 1.0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = given(values)
    return sum(known) / len(known) if known else None
