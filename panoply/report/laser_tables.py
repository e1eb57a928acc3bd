"""Tables of LASeR and best-of-n runs for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from rich.table import Table

from panoply.report.tables import add_row, count, empty_table, interval, number

Section: TypeAlias = Mapping[str, Any]


def strategies_table(strategies: Mapping[str, Section]) -> Table:
    """Returns what each policy came to on held-out prompts, and what its scores cost."""
    title = "Right responses to held-out prompts, before and after"
    columns = ("before", "after", "gain", "95 %", "rounds", "scores")
    table = empty_table(title, "strategy", columns)
    for name, found in strategies.items():
        add_row(
            table,
            name,
            number(found.get("before")),
            number(found.get("after")),
            number(found.get("gain"), signed=True),
            interval(found.get("gain_ci95"), signed=True),
            count(found["rounds"]),
            count(found["num_scored"]),
        )
    return table


def differences_table(differences: Mapping[str, Section]) -> Table:
    """Returns the first strategy less each other, behind all rounds."""
    table = empty_table("Paired differences on held-out prompts", "difference", ("value", "95 %"))
    for name, found in differences.items():
        ends = interval(found["ci95"], signed=True)
        add_row(table, name, number(found["value"], signed=True), ends)
    return table


def choices_table(choices: Mapping[str, Section]) -> Table:
    """Returns how often each arm was chosen, in all and by source, by the first strategy."""
    name, found = next(iter(choices.items()))
    table = empty_table(
        f"Share of the prompts that got each arm ({name})", "source", found["shares"]
    )
    add_row(table, "all", *(number(v, 2) for v in found["shares"].values()), style="bold")
    for source, own in found["shares_by_source"].items():
        add_row(table, source, *(number(value, 2) for value in own.values()))
    return table


def best_of_n_table(strategies: Mapping[str, Section]) -> Table:
    """Returns the share of right choices by strategy and n."""
    sizes = list(next(iter(strategies.values())))
    columns = [f"n = {n}" for n in sizes]
    table = empty_table("Right choices among n samples", "who picks", columns)
    for name, found in strategies.items():
        add_row(table, name, *(number(found[n]["value"]) for n in sizes))
    return table
