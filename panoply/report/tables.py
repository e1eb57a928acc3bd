"""Tables of a run for the terminal, made for 80 columns; a value that is not defined is '-'.

Every function takes one section of `metrics.json`. Names come from files, so all text is passed
as `Text`: square brackets in it are no markup.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from panoply.measure.boards import LEVELS, STYLES

Section: TypeAlias = Mapping[str, Any]
Part: TypeAlias = RenderableType

MANY = 20
"""Objectives from which on those without signal share one line."""
BALANCED = "accuracy_length_balanced"
INTERVAL = "ci95_length_balanced"
RAW = "_raw"
"""Ends the name of a scorer whose margins stand without a temperature."""
LEADS = ("gate", "score")
"""The scorer that a run is about: of a gated model, or of a scalar one."""
BY_SOURCE = (
    "oracle",
    "gate",
    "gate_source_mean",
    "best_fixed_per_source",
    "best_fixed",
    "mlp",
    "linear_bt",
    "score",
    "mixed",
    "lower_bound",
)
"""Scorers that are shown source by source; `metrics.json` has all of them."""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Returns a number as text, '-' where it is null or NaN."""
    if value is None or math.isnan(value):
        return "-"
    rounded = round(value, digits) + 0.0  # + 0.0: no negative zero
    return f"{rounded:{'+' if signed else ''}.{digits}f}"


def count(value: float | None) -> str:
    """Returns a count as text, '-' where it is null or NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def interval(ends: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """Returns an interval as text, nothing where it is absent."""
    if not ends:
        return ""
    return f"[{', '.join(number(end, signed=signed) for end in ends)}]"


def falling(value: float | None) -> float:
    """Returns a sort key: largest first, what is not defined last."""
    return math.inf if value is None or math.isnan(value) else -value


def lead(scorers: Container[str]) -> str:
    """Returns which of LEADS is among some scorers."""
    return next(name for name in LEADS if name in scorers)


def ranked(pairs: Mapping[str, Section]) -> list[str]:
    """Returns the scorers by their headline, best first."""
    return sorted(pairs, key=lambda n: falling(pairs[n].get("macro", {}).get(BALANCED)))


def objectives_table(objectives: Mapping[str, Section]) -> Part:
    """Returns how well each objective is predicted, best first.

    Of more than MANY objectives, those without signal are named in a line under the table.
    """
    names = sorted(objectives, key=lambda n: falling(objectives[n].get("spearman")))
    silent = [n for n in names if objectives[n].get("signal") is False]
    short = len(names) > MANY
    title = f"Objectives on held-out ratings ({len(names)}, {len(silent)} without signal)"
    columns = ("n", "Spearman", "95 %", "R2", "length", "prompt")
    table = empty_table(title, "objective", columns if short else (*columns, ""))
    for name in names:
        found = objectives[name]
        if short and name in silent:
            continue
        numbers = (number(found.get(k)) for k in ("r2", "length_spearman", "prompt_spearman"))
        add_row(
            table,
            name,
            count(found.get("n")),
            number(found.get("spearman")),
            interval(found.get("spearman_ci95")),
            *numbers,
            *([] if short else ["no signal" if name in silent else ""]),
            style="dim" if name in silent else "",
        )
    if not (short and silent):
        return table
    named = (f"{n} {number(objectives[n].get('spearman'), 2)}" for n in silent)
    return Group(table, Text(f"no signal: {', '.join(named)}", style="dim"))


def left_out_line(left_out: Mapping[str, str]) -> Text:
    """Returns the objectives that were not fitted, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    return Text("left out: " + "; ".join(f"{', '.join(n)} ({why})" for why, n in by_reason.items()))


def debias_line(debias: Section) -> Text:
    """Returns how far length is out of the objectives, the score and the accuracy."""
    held_out, score = debias.get("heldout") or {}, debias.get("score") or {}
    parts = [
        f"largest |Spearman| with predicted length "
        f"{number(debias.get('max_abs_spearman_before'))} -> "
        f"{number(debias.get('max_abs_spearman_after'))} in sample, "
        f"{number(held_out.get('max_abs_spearman'))} held out"
    ]
    if score:
        parts.append(f"gated score {_change(score.get('before'), score.get('after'))}")
    for scorer, strata in (debias.get("accuracy") or {}).items():
        each = (
            f"{key.replace('_', ' ')} "
            + _change(*(strata.get(when, {}).get(key) for when in ("before", "after")))
            for key in ("chosen_longer", "chosen_shorter")
        )
        parts.append(f"accuracy of {scorer.replace('_', ' ')}: {', '.join(each)}")
    return Text.assemble(("Debias: ", "bold"), "; ".join(parts))


def scorers_table(pairs: Mapping[str, Section]) -> Table:
    """Returns every scorer's headline, best first: accuracies are means over sources."""
    title = "Scorers (accuracies: mean over sources; the rest: all pairs)"
    columns = ("accuracy", "length-\nbalanced", "95 %", "log\nloss", "ECE (floor)")
    ties = any(found.get("ties") for found in pairs.values())
    table = empty_table(title, "scorer", (*columns, "ties") if ties else columns)
    for name in ranked(pairs):
        found, macro = pairs[name], pairs[name].get("macro", {})
        add_row(
            table,
            name.replace("_", " "),
            number(macro.get("accuracy")),
            number(macro.get(BALANCED)),
            interval(macro.get("ci95_length_balanced")),
            number(found.get("log_loss")),
            f"{number(found.get('ece'))} ({number(found.get('ece_floor'))})",
            *([number(found.get("ties"))] if ties else []),
            style="bold" if name in LEADS else "",
        )
    return table


def comparisons_table(comparisons: Mapping[str, Section]) -> Table:
    """Returns paired differences in macro length-balanced accuracy."""
    title = "Paired differences in length-balanced accuracy (mean over sources)"
    table = empty_table(title, "difference", ("value", "95 % interval"))
    for name, found in comparisons.items():
        ends = interval(found.get("ci95"), signed=True)
        add_row(table, name.replace("_", " "), number(found.get("value"), signed=True), ends)
    return table


def sources_table(pairs: Mapping[str, Section]) -> Table:
    """Returns length-balanced accuracy by source of the scorers in BY_SOURCE, best first."""
    scorers = [name for name in ranked(pairs) if name in BY_SOURCE]
    labels = [name.replace("_", "\n") for name in scorers]  # a word a line: narrow columns
    table = empty_table("Length-balanced accuracy by source", "source", ["n", *labels])
    sources = dict.fromkeys(s for name in scorers for s in pairs[name]["per_source"])
    for source in sources:
        each = [pairs[name]["per_source"].get(source, {}) for name in scorers]
        sizes = [found["n"] for found in each if found.get("n") is not None]
        row = Text(source)
        cells = [count(max(sizes, default=None)), *(number(f.get(BALANCED)) for f in each)]
        styles = ["", *("bold" if name in LEADS else "" for name in scorers)]
        table.add_row(row, *(Text(c, style=s) for c, s in zip(cells, styles, strict=True)))
    # Many scorers: narrow gaps, and room for the names, so that neither names nor numbers break.
    table.padding = 0
    table.columns[0].min_width = min(20, max(map(len, sources), default=0))
    return table


def weights_table(weights: Mapping[str, Mapping[str, float]], top: int = 3) -> Table:
    """Returns the objectives that the gate weighs most in each domain."""
    table = empty_table("Mean gate weights: largest by domain", "domain", ())
    table.add_column("objectives", overflow="fold")
    for domain, row in weights.items():
        largest = sorted(row, key=lambda name: falling(row[name]))[:top]
        add_row(table, domain, ", ".join(f"{name} {number(row[name], 2)}" for name in largest))
    return table


def leave_one_out_table(sources: Mapping[str, Section]) -> Table:
    """Returns length-balanced accuracy on sources that the weights never saw."""
    scorers = list(dict.fromkeys(k for found in sources.values() for k in found if k != "n"))
    labels = [name.replace("_", " ") for name in scorers]
    table = empty_table("Leave one source out: length-balanced accuracy", "source", ["n", *labels])
    for source, found in sources.items():
        add_row(table, source, count(found.get("n")), *(number(found.get(k)) for k in scorers))
    return table


def planted_table(planted: Section) -> Table:
    """Returns how much of what was planted the gate found."""
    columns = ("oracle", "gate", "best_fixed", "recovered", "weight_correlation")
    table = empty_table("Planted world", "", [name.replace("_", " ") for name in columns])
    add_row(table, "accuracy", *(number(planted.get(name)) for name in columns))
    return table


def rmbench_table(board: Section) -> Part:
    """Returns RM-Bench's numbers, best average first, and the leading scorer's matrix of styles."""
    scorers = board["scorers"]
    domains = list(next(iter(scorers.values()))["by_domain"])
    names = sorted(scorers, key=lambda n: falling(scorers[n].get("average")))
    chief = lead(scorers)
    left_out = board["num_seen"] if board["num_seen"] < board["num_pairs"] else 0
    title = f"RM-Bench (mean over domains; {count(left_out)} pairs of prompts trained on left out)"
    table = empty_table(title, "scorer", (*LEVELS, *domains))
    for name in names:
        found = scorers[name]
        each = (number(found.get(level)) for level in LEVELS)
        own = (number(found["by_domain"][domain].get("average")) for domain in domains)
        style = "bold" if name in LEADS else ""
        add_row(table, name.replace("_", " "), *each, *own, style=style)
    cells = [found["matrix"] for found in scorers[chief]["by_domain"].values()]
    styles = empty_table(f"RM-Bench: wins of the {chief} by style", "chosen \\ rejected", STYLES)
    for i, row in enumerate(STYLES):
        means = [_mean(matrix[i][j] for matrix in cells) for j in range(len(STYLES))]
        add_row(styles, row, *map(number, means))
    return Group(table, Text(), styles)


def matrix_table(matrix: Section) -> Part:
    """Returns every model on every source, and the means over sources in and out of domain."""
    sources = matrix["sources"]
    labels = [name.replace("_", "\n") for name in sources]
    table = empty_table("Length-balanced accuracy by source (*: trained on)", "model", labels)
    add_row(table, "n", *(f"{count(n)} " for n in sources.values()), style="dim")
    for model, row in matrix["matrix"].items():
        marks = ("*" if own["trained_on"] else " " for own in row.values())
        numbers = (number(own[BALANCED]) for own in row.values())
        add_row(table, model, *(value + mark for value, mark in zip(numbers, marks, strict=True)))
    columns = ("in domain\n[95 %]", "out of domain\n[95 %]", "log\nloss", "ECE (floor)")
    title = "Means over sources: length-balanced accuracy; log loss and ECE over all"
    means = empty_table(title, "model", columns)
    for model, found in matrix["means"].items():
        within, overall = (found["in_domain"], found["out_of_domain"]), found["all"]
        add_row(
            means,
            model,
            *(f"{number(own.get(BALANCED))}\n{interval(own.get(INTERVAL))}" for own in within),
            number(overall["log_loss"]),
            f"{number(overall['ece'])} ({number(overall['ece_floor'])})",
        )
    left_out = f"{count(matrix['num_seen'])} of {count(matrix['num_pairs'])} pairs are left out"
    note = Text(f"{left_out}: a model has seen their prompts\n", style="dim")
    return Group(table, note, means)


def _mean(values: Iterable[float | None]) -> float:
    given = [math.nan if value is None else value for value in values]
    return sum(given) / len(given)


def empty_table(title: str, first: str, columns: Iterable[str]) -> Table:
    """Returns a table without rows; the first column names them, the others are numbers."""
    table = Table(
        title=Text(title, style="bold", no_wrap=True, overflow="ignore"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    table.add_column(Text(first), overflow="fold")
    for name in columns:
        table.add_column(Text(name), justify="right", vertical="bottom")
    return table


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """Adds a row whose square brackets are no markup."""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _change(before: float | None, after: float | None) -> str:
    return f"{number(before)} -> {number(after)}"
