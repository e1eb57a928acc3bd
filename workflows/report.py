"""What a person looks at: tables in the terminal and plots in the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

TOP = 15


def number(value: Any, digits: int = 3) -> str:
    """Returns a number for a table; what is missing is a dash."""
    if value is None or not math.isfinite(float(value)):
        return "-"
    return f"{float(value):.{digits}f}"


def interval(bounds: Any) -> str:
    """Returns an interval for a table."""
    return f"[{number(bounds[0], 2)}, {number(bounds[1], 2)}]" if bounds else "-"


def table(title: str, *columns: str) -> Table:
    """Returns an empty table, its numbers right-aligned."""
    made = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    return made


def print_summary(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints what a run found; sections that a run has not are left out."""
    if found := metrics.get("objectives"):
        rows = table("objectives", "name", "n", "spearman", "95 %", "length", "prompt", "")
        for name, m in found.items():
            rows.add_row(
                name,
                f"{m['oof_n']:.0f}",
                number(m["oof_spearman"], 2),
                interval(m["oof_spearman_ci95"]),
                number(m["oof_length_spearman"], 2),
                number(m["oof_prompt_spearman"], 2),
                "" if m["signal"] else "no signal beyond the prompt",
            )
        console.print(rows)
    if debias := metrics.get("debias"):
        console.print(
            "length: largest |Spearman| with predicted length "
            f"{number(debias['max_abs_spearman_before'])} before, "
            f"{number(debias['max_abs_spearman_after'])} after, "
            f"{number(debias['heldout']['max_abs_spearman'])} held out"
        )
    if pairs := metrics.get("pairs"):
        print_pairs(pairs, console)
    if weights := metrics.get("gate", {}).get("weights_by_domain"):
        rows = table("gate: largest mean weights", "domain", "objectives")
        for domain, own in weights.items():
            best = sorted(own, key=lambda name: -own[name])[:3]
            rows.add_row(domain, ", ".join(f"{name} {own[name]:.2f}" for name in best))
        console.print(rows)
    if planted := metrics.get("planted"):
        console.print("planted: " + ", ".join(f"{k} {number(v)}" for k, v in planted.items()))


def print_pairs(pairs: Mapping[str, Any], console: Console) -> None:
    """Prints the scorers, over all sources and by source."""
    rows = table(
        "pairs (macro over sources)", "scorer", "accuracy", "balanced", "95 %", "log loss", "ECE"
    )
    for name, m in pairs.items():
        rows.add_row(
            name,
            number(m["macro"]["accuracy"]),
            number(m["macro"]["accuracy_length_balanced"]),
            interval(m["macro"]["ci95_length_balanced"]),
            number(m["log_loss"]),
            f"{number(m['ece'])} ({number(m['ece_floor'])})",
            style="bold" if name == "gate" else None,
        )
    console.print(rows)
    sources = list(next(iter(pairs.values()))["per_source"])
    rows = table("length-balanced accuracy by source", "source", *pairs)
    for source in sources:
        own = (m["per_source"][source]["accuracy_length_balanced"] for m in pairs.values())
        rows.add_row(source, *(number(value, 2) for value in own))
    console.print(rows)


def write_plots(metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots that the metrics allow as PNG; returns their paths."""
    figures: dict[str, Figure] = {}
    if weights := metrics.get("gate", {}).get("weights_by_domain"):
        figures["gate_weights"] = plot_gate(weights)
    if pairs := metrics.get("pairs"):
        figures["baselines"] = plot_baselines(pairs)
    if curves := metrics.get("reliability"):
        figures["reliability"] = plot_reliability(curves)
    if debias := metrics.get("debias"):
        figures["length_bias"] = plot_length(debias)
    paths: list[Path] = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def plot_gate(weights: Mapping[str, Mapping[str, float]]) -> Figure:
    """Heat map of the gate's mean weights by domain; small objectives are summed up."""
    domains, names = list(weights), list(next(iter(weights.values())))
    values = np.array([[weights[d][name] for name in names] for d in domains])
    order = np.argsort(-values.max(0))
    shown, rest = order[:TOP], order[TOP:]
    grid = values[:, shown]
    labels = [names[i] for i in shown]
    if len(rest):
        grid = np.column_stack([grid, values[:, rest].sum(1)])
        labels.append(f"{len(rest)} others")
    figure = Figure(figsize=(2.5 + 0.5 * len(labels), 2.6 + 0.4 * len(domains)), layout="tight")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="viridis", aspect="auto", vmin=0)
    axes.set_xticks(range(len(labels)), labels, rotation=50, ha="right", fontsize=8)
    axes.set_yticks(range(len(domains)), domains, fontsize=8)
    axes.set_title("Mean gate weight by domain")
    figure.colorbar(image, ax=axes)
    return figure


def plot_baselines(pairs: Mapping[str, Any]) -> Figure:
    """Length-balanced accuracy of every scorer, macro over sources, with intervals."""
    names = sorted(pairs, key=lambda n: pairs[n]["macro"]["accuracy_length_balanced"])
    figure = Figure(figsize=(7, 0.6 + 0.4 * len(names)), layout="tight")
    axes = figure.add_subplot()
    for y, name in enumerate(names):
        macro = pairs[name]["macro"]
        color = "tab:orange" if name == "gate" else "tab:blue"
        axes.plot(macro["ci95_length_balanced"], [y, y], color=color)
        axes.plot(macro["accuracy_length_balanced"], y, "o", color=color)
    axes.axvline(0.5, color="gray", linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("length-balanced accuracy, macro over sources (95 %)")
    return figure


def plot_reliability(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence of the predicted winner."""
    figure = Figure(figsize=(5, 4.5), layout="tight")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="gray", linestyle=":")
    for name, curve in curves.items():
        axes.plot(curve["confidence"], curve["accuracy"], marker="o", label=name, markersize=4)
    axes.set_xlabel("confidence of the predicted winner")
    axes.set_ylabel("accuracy")
    axes.set_title("Reliability on test pairs")
    axes.legend()
    return figure


def plot_length(debias: Mapping[str, Any]) -> Figure:
    """Rank correlation of every objective with predicted length, before and after."""
    names = sorted(debias["before"], key=lambda n: abs(debias["before"][n] or 0))
    figure = Figure(figsize=(7, 1.2 + 0.2 * len(names)), layout="tight")
    axes = figure.add_subplot()
    y = np.arange(len(names))
    for key, marker in (("before", "o"), ("after", "x")):
        axes.plot([debias[key][n] for n in names], y, marker, label=key, markersize=5)
    held_out = debias["heldout"]["after"]
    axes.plot([held_out[n] for n in names], y, ".", label="after, held out", color="tab:green")
    axes.axvline(0, color="gray", linestyle=":")
    axes.set_yticks(y, names, fontsize=7)
    axes.set_xlabel("Spearman with predicted length")
    axes.legend()
    return figure
