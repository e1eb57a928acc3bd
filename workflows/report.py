"""What a person looks at: tables in the terminal, plots in the run folder.

Both read a finished `metrics.json`; sections that a run does not have are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from workflows import plots, tables


def print_summary(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints the tables of a run."""
    draw = {
        "objectives": tables.objectives_table,
        "left_out": tables.left_out_line,
        "debias": tables.debias_line,
        "pairs": tables.scorers_table,
        "comparisons": tables.comparisons_table,
        "leave_one_out": tables.leave_one_out_table,
        "planted": tables.planted_table,
    }
    for name, make in draw.items():
        if metrics.get(name):
            console.print(make(metrics[name]))
        if name == "pairs" and metrics.get("pairs"):
            console.print(tables.sources_table(metrics["pairs"]))
        if name == "comparisons" and (found := metrics.get("gate", {}).get("weights_by_domain")):
            console.print(tables.weights_table(found))


def write_plots(metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots that the metrics allow as PNG and returns their paths."""
    figures: dict[str, Figure] = {}
    if weights := metrics.get("gate", {}).get("weights_by_domain"):
        figures["gate_weights"] = plots.gate_weights(weights)
    if curves := metrics.get("reliability"):
        figures["reliability"] = plots.reliability(curves, metrics.get("pairs", {}))
    if debias := metrics.get("debias"):
        figures["length_bias"] = plots.length_bias(debias)
    if pairs := metrics.get("pairs"):
        figures["baselines"] = plots.baselines(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        paths.append(folder / f"{name}.png")
    return paths
