"""What a person looks at: tables in the terminal, plots in the run folder.

Both read a finished `metrics.json`; sections that a run does not have are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from panoply.report import laser_tables, plots, tables
from panoply.report.progress import Terminal


def print_summary(metrics: Mapping[str, Any], console: Terminal) -> None:
    """Prints the tables of a run, each followed by an empty line."""
    pairs = metrics.get("pairs", {})
    sections = (
        (metrics.get("objectives"), tables.objectives_table),
        (metrics.get("left_out"), tables.left_out_line),
        (metrics.get("debias"), tables.debias_line),
        (pairs, tables.scorers_table),
        ({k: v for k, v in pairs.items() if v.get("per_source")}, tables.sources_table),
        (metrics.get("comparisons"), tables.comparisons_table),
        (metrics.get("rmbench"), tables.rmbench_table),
        (metrics.get("gate", {}).get("weights_by_domain"), tables.weights_table),
        (metrics.get("leave_one_out"), tables.leave_one_out_table),
        (metrics.get("planted"), tables.planted_table),
        (metrics.get("strategies"), laser_tables.strategies_table),
        (metrics.get("differences"), laser_tables.differences_table),
        (metrics.get("choices"), laser_tables.choices_table),
        (metrics.get("best_of_n"), laser_tables.best_of_n_table),
    )
    for section, make in sections:
        if section:
            console.print(make(section))
            console.print()


def write_plots(metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots that the metrics allow as PNG and returns their paths."""
    figures: dict[str, Figure] = {}
    if weights := metrics.get("gate", {}).get("weights_by_domain"):
        figures["gate_weights"] = plots.gate_weights(weights)
    if curves := metrics.get("reliability"):
        figures["reliability"] = plots.reliability(curves, metrics.get("pairs", {}))
    if (debias := metrics.get("debias", {})).get("before"):
        figures["length_bias"] = plots.length_bias(debias)
    pairs = metrics.get("pairs", {})
    if any("macro" in found for found in pairs.values()):
        figures["baselines"] = plots.baselines(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
        paths.append(folder / f"{name}.png")
    return paths
