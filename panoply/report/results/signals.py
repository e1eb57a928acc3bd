"""A section about the signals that a bandit can be rewarded with, beside what is wanted."""

from __future__ import annotations

from collections.abc import Mapping

from panoply.report.results.laser import chief_of
from panoply.report.section import (
    Block,
    Column,
    Fold,
    Metrics,
    Row,
    Section,
    Table,
    count,
    defined,
    falling,
    short,
    side,
    signed_interval,
)

TARGETS = {
    "verifier": (
        "Signals and the verifier",
        "how well the chosen arm orders right above wrong responses",
    ),
    "held_out": ("Signals and the gain of a round", "how far the round raised held-out quality"),
}
"""Targets that signals are compared with, as a title and in words."""


def signals(choices: Mapping[str, Metrics]) -> Section:
    """Returns how each signal ranks decisions beside held-out quality and the verifier."""
    chief = chief_of(choices)
    others = [Fold(name, _signals_of(choices[name])) for name in choices if name != chief]
    note = (
        "A bandit can only be as good as what it is rewarded with. Every signal that was measured "
        f"is compared with what is wanted, over the decisions of {chief}. Intervals are over "
        "rounds; of twenty, one misses by chance."
    )
    blocks = [*_signals_of(choices[chief]), *others]
    return Section("signals", "Signals and held-out quality", note, blocks, on_terminal=False)


def _signals_of(choice: Metrics) -> list[Block]:
    blocks: list[Block] = []
    for target, correlations in choice["signals"].items():
        others = {name: entry for name, entry in correlations.items() if name != target}
        blocks.append(meaning(others, target, choice["applied"]))
        if any(defined([entry.get("spearman")]) for entry in others.values()):
            blocks.append(signal_table(others, target, choice["applied"]))
    return blocks


def signal_table(correlations: Mapping[str, Metrics], target: str, applied: str) -> Table:
    """Returns the correlation of each signal with a target, best first.

    Args:
        correlations: by signal, without the target itself.
        target: one of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    order = sorted(correlations, key=lambda name: falling(correlations[name].get("spearman")))
    rows: list[Row] = []
    for name in order:
        entry = correlations[name]
        notes = ["applied"] if name == applied else []
        notes += [reason] if (reason := why_undefined(entry)) else []
        style = "strong" if name == applied else "dim" if reason else ""
        cells = [entry.get("spearman"), entry.get("ci95"), entry.get("n")]
        rows.append(Row(name, cells, style, ", ".join(notes)))
    columns = [
        Column("value", short, "dot"),
        Column("95 %", signed_interval, "interval"),
        Column("n", count),
    ]
    title, ends = TARGETS[target][0], (-1.0, 1.0)
    return Table(title, "signal", columns, rows, measure="Spearman", ends=ends)


def why_undefined(correlation: Metrics) -> str:
    """Returns why a signal has no correlation; '' where it has one."""
    if defined([correlation.get("spearman")]):
        return ""
    return "does not vary" if correlation.get("n") else "not measured"


def meaning(correlations: Mapping[str, Metrics], target: str, applied: str) -> str:
    """Returns in plain words what the correlations with a target say.

    Args:
        correlations: by signal, without the target itself.
        target: one of TARGETS.
        applied: the signal that the bandit was rewarded with.
    """
    what = TARGETS[target][1]
    varied = {name: entry for name, entry in correlations.items() if not why_undefined(entry)}
    if not varied:
        if any(entry.get("n") for entry in correlations.values()):
            return f"No signal can be compared with {what}: one of the two never varied."
        return f"No signal can be compared with {what}: it was not measured together with any."
    sides = {name: side(entry.get("ci95")) for name, entry in varied.items()}
    sentences: list[str] = []
    if applied == target:
        sentences.append("This is what the bandit was rewarded with.")
    if applied in correlations:
        outcome = _meaning_of_applied(correlations[applied], what)
        sentences.append(f"The bandit was rewarded with {applied}, {outcome}")
    for direction, verb in (("above", "with"), ("below", "against")):
        names = [n for n, where in sides.items() if where == direction and n != applied]
        if names:
            goes = "goes" if len(names) == 1 else "go"
            object_ = "it" if applied in correlations else what
            sentences.append(f"{' and '.join(names)} {goes} {verb} {object_}.")
    if set(sides.values()) == {"around"}:
        sentences.append("No signal can be told from chance: every interval holds 0.")
    return " ".join(sentences)


def _meaning_of_applied(correlation: Metrics, what: str) -> str:
    if reason := why_undefined(correlation):
        return f"which has no correlation with {what} here ({reason})."
    match side(correlation.get("ci95")):
        case "above":
            return f"which goes with {what}: to chase the one is to chase the other."
        case "below":
            return f"which goes against {what}: what it chases is not what is wanted."
        case "around":
            n = count(correlation.get("n"))
            return f"of which {n} decisions cannot tell if it goes with {what}."
