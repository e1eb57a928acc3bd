"""Sections about objectives and the gate: fit, weights, length, mistakes, sources left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from scipy.special import expit

from panoply.report.section import (
    Column,
    KeyFigure,
    Mark,
    Metrics,
    Mistake,
    Row,
    Section,
    ShownTurn,
    Table,
    count,
    defined,
    falling,
    interval,
    number,
    rows_of,
    short,
    words,
)

MOST_WEIGHTS = 15
"""Objectives that the heat map shows one by one when there are more of them."""
MOST_DRIVERS = 6
"""Objectives that explain a mistake one by one, the others being summed."""
SMALL = 0.05
"""Share of the largest contribution below which contributions are summed."""
LARGEST = 3
"""Objectives that a terminal names of each domain."""
LEFT_OUT_MARKS: dict[str, Mark] = {"gate": "dot", "best_fixed": "before", "linear_bt": "other"}
"""Scorers that are fitted without each source in turn, and how they are drawn."""


def key_figures(metrics: Metrics) -> list[KeyFigure]:
    """Returns what is left of length, the objectives with signal, and the planted gain."""
    shown: list[KeyFigure] = []
    if debias := metrics.get("debias"):
        left = number((debias.get("heldout") or {}).get("max_abs_spearman"))
        before = number((debias.get("heldout") or {}).get("max_abs_spearman_before"))
        noise = number((debias.get("heldout") or {}).get("noise"))
        note = f"largest correlation of an objective, held out; before {before}, noise {noise}"
        shown.append(KeyFigure("Length left", left, note))
    if objectives := metrics.get("objectives"):
        signal = sum(entry.get("signal") is not False for entry in objectives.values())
        share = f"{signal} of {len(objectives)}"
        note = "can be predicted on held-out ratings"
        shown.append(KeyFigure("Objectives with signal", share, note))
    if planted := metrics.get("planted"):
        recovered, note = short(planted.get("recovered")), "0: best fixed weights, 1: oracle"
        shown.append(KeyFigure("Planted gain recovered", recovered, note))
    return shown


def objectives(measured: Mapping[str, Metrics], left_out: Mapping[str, str]) -> Section:
    """Returns how well each objective is predicted on held-out ratings, best first."""
    note = (
        "Rank correlation of predicted with held-out ratings, beside what the length of the "
        "response alone and the prompt alone reach."
    )
    columns = [
        Column("Spearman", mark="bar", key="spearman"),
        Column("95 %", interval, "interval", key="spearman_ci95"),
        Column("n", count),
        Column("R²", key="r2"),
        Column("length alone", key="length_spearman"),
        Column("prompt alone", key="prompt_spearman"),
    ]
    silent = {name for name, entry in measured.items() if entry.get("signal") is False}
    rows = rows_of(measured, columns)
    rows = [replace(r, style="dim", note="no signal") if r.name in silent else r for r in rows]
    rows.sort(key=lambda row: falling(row.cells[0]))
    title = f"Objectives on held-out ratings ({len(rows)}, {len(silent)} without signal)"
    table = Table(title, "objective", columns, rows, measure="Spearman")
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    lines = [f"Left out: {', '.join(names)} ({why})." for why, names in by_reason.items()]
    return Section("objectives", "Objective fit", note, [table, *lines])


def gate_weights(weights: Mapping[str, Mapping[str, float | None]]) -> Section:
    """Returns the mean weight of each objective by domain, heaviest first, small ones summed."""
    domains = list(weights)
    names = dict.fromkeys(chain(*weights.values()))
    cells = {name: [row.get(name) for row in weights.values()] for name in names}
    largest = {name: max(defined(values), default=0.0) for name, values in cells.items()}
    order = sorted(names, key=lambda name: -largest[name])
    shown, others = order[:MOST_WEIGHTS], order[MOST_WEIGHTS:]
    rows = [Row(name, cells[name]) for name in shown]
    if others:
        sums = [sum(defined(map(row.get, others))) for row in weights.values()]
        # Dim, so that it is not shaded: a sum over objectives has another scale.
        rows.append(Row(f"{len(others)} others together", sums, "dim"))
    heat = (0.0, max(largest.values(), default=0.0))
    heat_map = Table(
        "Mean weight of each objective, by domain",
        "objective",
        [Column(domain, short, heat=heat) for domain in domains],
        rows,
        file="gate_weights",
        on="page",
    )
    tops: list[Row] = []
    for domain, row in weights.items():
        heaviest = sorted(row, key=lambda name: falling(row[name]))[:LARGEST]
        tops.append(Row(domain, [", ".join(f"{name} {short(row[name])}" for name in heaviest)]))
    title = "Largest mean weights of the gate by domain"
    largest_table = Table(title, "domain", [Column("objectives", str)], tops, on="terminal")
    note = (
        "How the gate shares its attention on held-out prompts. The weights of a domain add up to "
        "1; the strongest color of a column is what it asks for."
    )
    return Section("gate", "What the gate weighs", note, [heat_map, largest_table])


def length(debias: Metrics) -> Section:
    """Returns what debiasing does to each objective, to the score, and to accuracy by stratum."""
    held_out, score = debias.get("heldout") or {}, debias.get("score") or {}
    before, after = held_out.get("before") or {}, held_out.get("after") or {}
    sentence = (
        "Debias: the largest |Spearman| of an objective with predicted length goes "
        f"{number(held_out.get('max_abs_spearman_before'))} -> "
        f"{number(held_out.get('max_abs_spearman'))} on held-out pairs"
    )
    if noise := held_out.get("noise"):
        sentence += f" (noise {number(noise)})"
    if score:
        sentence += (
            f"; that of the gated score {number(score.get('before'))} -> "
            f"{number(score.get('after'))}"
        )
    in_sample = debias.get("after") or {}
    rows: list[Row] = []
    for name in in_sample:
        values = [before.get(name), after.get(name), in_sample[name]]
        rows.append(Row(name, [None if value is None else abs(value) for value in values]))
    rows.sort(key=lambda row: falling(row.cells[0]))
    columns = [
        Column("before, held out", mark="before"),
        Column("after, held out", mark="after"),
        Column("after, in sample", mark="other"),
    ]
    each = Table(
        "How far each objective follows length",
        "objective",
        columns,
        rows,
        measure="|Spearman| with predicted length",
        file="length_bias",
        on="page",
    )
    note = (
        "What predicted length explains is subtracted from each objective. A correlation within "
        "twice the noise is none."
    )
    strata = _strata(debias.get("accuracy") or {})
    return Section("length", "Length bias", note, [f"{sentence}.", each, strata])


def _strata(accuracy: Mapping[str, Metrics]) -> Table:
    """Returns accuracy where the chosen response is longer or shorter, before and after."""
    rows: list[Row] = []
    for scorer, entry in accuracy.items():
        for stratum in ("chosen_longer", "chosen_shorter"):
            cells = [entry.get(when, {}).get(stratum) for when in ("before", "after")]
            rows.append(Row(f"{words(scorer)}, {words(stratum)}", cells))
    columns = [Column("before", mark="before"), Column("after", mark="after")]
    title = "Accuracy by which response is longer"
    return Table(title, "scorer", columns, rows, measure="accuracy", origin=0.5)


def mistakes(report: Metrics) -> Section:
    """Returns the held-out pairs of which the model is most confident and wrong."""
    pairs: Sequence[Metrics] = report["mistakes"]
    parts = list(chain(*(pair["contributions"] for pair in pairs)))
    size = max(map(abs, defined(part["log_odds"] for part in parts)), default=1.0)
    shown = [_mistake(i, pair, size) for i, pair in enumerate(pairs, start=1)]
    note = (
        f"The model ranks {count(report['num_wrong'])} of {count(report['num_test'])} held-out "
        "pairs the wrong way round. These are the ones it is surest of, one a prompt and an even "
        "share a source. The label may be wrong too."
    )
    if len(parts) > len(pairs):
        note += (
            " Bars say what moved the gate, in log odds: to the left for the rejected response, to "
            "the right for the chosen one."
        )
    blocks = shown or ["None."]
    return Section("mistakes", "Most confident mistakes", note, blocks, on_terminal=False)


def _mistake(position: int, pair: Metrics, size: float) -> Mistake:
    contributions: Sequence[Metrics] = pair["contributions"]
    sure = 100 * expit(-sum(part["log_odds"] for part in contributions))
    domain = f", domain {pair['domain']}" if pair["domain"] != pair["source"] else ""
    return Mistake(
        title=f"{position}. {sure:.0f} % sure of the rejected response",
        source=f"source {pair['source']}{domain}",
        prompt=[ShownTurn(turn["role"], turn["content"]) for turn in pair["prompt"]],
        chosen=pair["chosen"],
        rejected=pair["rejected"],
        lengths=(pair["chosen_length"], pair["rejected_length"]),
        drivers=_drivers(contributions, size),
    )


def _drivers(contributions: Sequence[Metrics], size: float) -> Table:
    """Returns what moved the gate in a pair, in log odds of the chosen response, the largest first.

    Args:
        contributions: by objective, the largest first.
        size: the largest of all mistakes, so that the bars of all compare.
    """
    parts = [(entry["objective"], entry["log_odds"], entry["weight"]) for entry in contributions]
    least = SMALL * max((abs(odds) for _, odds, _ in parts), default=0.0)
    large = [part for part in parts if abs(part[1]) > least][:MOST_DRIVERS]
    others = parts[len(large) :]
    rows = [Row(name, [odds, weight]) for name, odds, weight in large]
    if others:
        sums: list[Any] = [sum(odds for _, odds, _ in others), sum(w for *_, w in others)]
        rows.append(Row(f"{len(others)} others together", sums))
    log_odds = Column("log odds", partial(number, digits=2, signed=True), "bar")
    columns = [log_odds, Column("gate weight", short)]
    if len(parts) < 2:  # a single score explains nothing
        return Table("", "", [], [])
    measure, ends = "rejected ← → chosen", (-size, size)
    return Table("What moved the gate", "objective", columns, rows, measure=measure, ends=ends)


def leave_one_out(sources: Mapping[str, Metrics]) -> Section:
    """Returns length-balanced accuracy on sources that the weights never saw."""
    measured = set(chain(*sources.values()))
    names = [name for name in LEFT_OUT_MARKS if name in measured]
    columns = [Column(words(name), mark=LEFT_OUT_MARKS[name], key=name) for name in names]
    columns.append(Column("n", count))
    table = Table(
        "Leave one source out: each judged by weights that never saw it",
        "source",
        columns,
        rows_of(sources, columns),
        measure="length-balanced accuracy",
        origin=0.5,
    )
    note = (
        "Weights fitted on all other sources, judged on all pairs of the one left out: what to "
        "expect of a source that is new."
    )
    return Section("left-out", "Leave one source out", note, [table])


def planted(measured: Metrics) -> Section:
    """Returns the gate between the best fixed weights and the oracle that planted the truth."""
    parts = {
        n: {"accuracy": measured[n]} for n in ("oracle", "gate", "best_fixed") if n in measured
    }
    columns = [Column("accuracy", mark="bar")]
    rows = rows_of(parts, columns, ("gate",), words)
    title = "Accuracy on held-out pairs of the planted world"
    table = Table(title, "scorer", columns, rows, measure="accuracy", origin=0.5)
    sentence = (
        f"The gate makes up {number(measured.get('recovered'))} of the way from the best fixed "
        "weights to the oracle, and its weights correlate "
        f"{number(measured.get('weight_correlation'))} with the planted ones."
    )
    note = "The data is generated, so the best possible weights are known."
    return Section("planted", "Planted truth", note, [sentence, table])
