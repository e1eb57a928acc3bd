"""The section about best of n: right choices by n, and where more samples made them worse."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Metrics,
    Row,
    Section,
    Table,
    count,
    defined,
    falling,
    interval,
    number,
    signed,
    signed_interval,
)

MOST_COLUMNS = 6
"""Sizes n that a table has all of."""


def right_choices(
    choices: Mapping[str, Mapping[str, Metrics]], routed: Mapping[str, int], optimization: Metrics
) -> Section:
    """Returns right choices of a best-of-n run by the number of samples.

    Args:
        choices: by who picks and by n: `value` and `ci95`.
        routed: prompts that the bandit of a run gave to each arm; may be empty.
        optimization: `kl` by n, and by who picks how far more samples made the choice worse; empty
            of a run before it was measured.
    """
    sizes = list(next(iter(choices.values())))
    most = sizes[-1]
    # Curves have every n, and a table of many the powers of 2.
    is_listed = [len(sizes) <= MOST_COLUMNS or int(n).bit_count() == 1 for n in sizes[:-1]]
    smaller = list(compress(sizes, is_listed))
    curves: list[Curve] = []
    rows: list[Row] = []
    for name in sorted(choices, key=lambda name: falling(choices[name][most]["value"])):
        entries = choices[name]
        curves.append(Curve(name, sizes, [entries[n]["value"] for n in sizes]))
        values = [entries[n]["value"] for n in (*smaller, most)]
        rows.append(Row(name, [*values, entries[most].get("ci95")]))
    single = defined(entry.get("1", {}).get("value") for entry in choices.values())
    origin = next(iter(single), 0.0)
    title = "Right choices by the number of samples"
    by_n = Curves(title, "n", "right choices", curves, origin=origin, with_numbers=False)
    columns = [Column(f"n = {n}") for n in smaller]
    columns += [Column(f"n = {most}", mark="dot"), Column("95 %", interval, "interval")]
    title, measure = f"Right choices among {most} samples, and among fewer", f"n = {most}"
    table = Table(title, "who picks", columns, rows, measure=measure, origin=origin)
    counts = [Row(arm, [num]) for arm, num in routed.items()]
    title = "Prompts that the bandit gave to each arm"
    prompts = Table(title, "arm", [Column("prompts", count)], counts, on="page")
    note = (
        "Nothing is trained: of the same samples, each arm or ensemble picks the one that it "
        "scores highest, and the verifier says whether that one is right. Figures of a smaller n "
        "are means over all sets of so many samples. “any right” is what a perfect choice would "
        "reach. The dashed line is one sample."
    )
    blocks: list[Block] = [by_n, table, prompts]
    if optimization:
        blocks[2:2] = [_turns(optimization), _rises(optimization)]
    return Section("best-of-n", "Best of n", note, blocks)


def _rises(optimization: Metrics) -> Curves:
    """Returns by n how far the scores of the chosen rise above one sample's."""
    curves: list[Curve] = []
    for name, entry in optimization["strategies"].items():
        curves.append(Curve(name, [*entry["proxy"]], [*entry["proxy"].values()]))
    title = "Rise of who picks's own score, in deviations of its scores of all samples"
    return Curves(title, "n", "rise", curves, origin=0.0, with_numbers=False)


def _turns(optimization: Metrics) -> Table:
    """Returns by who picks at which n most choices are right, and what is lost behind it."""
    most, distance = list(optimization["kl"].items())[-1]
    rows: list[Row] = []
    for name, entry in optimization["strategies"].items():
        turn, fit = entry["turn"], entry["fit"]
        fitted = [fit[name]["value"] if fit["holds"] else None for name in ("alpha", "beta")]
        cells = [entry["proxy"][most], entry["peak"], turn["value"], turn["ci95"], *fitted]
        rows.append(Row(name, cells))
    columns = [
        Column("its scores rise by", signed),
        Column("most right at n", count),
        Column("right choices lost", signed, "dot"),
        Column("95 %", signed_interval, "interval"),
        Column("alpha", signed),
        Column("beta", signed),
    ]
    title = (
        f"Over-optimization: from the best n to n = {most}, at most {number(distance)} nats from "
        "the policy; alpha and beta where right choices rise by d (alpha - beta d), d the root of "
        "the nats"
    )
    return Table(title, "who picks", columns, rows, measure="right choices lost")
