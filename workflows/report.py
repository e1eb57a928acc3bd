"""What a finished run shows: plots in its folder and a summary in the terminal.

Pure functions of `metrics`, as written to `metrics.json`. Sections that a run does not have are
skipped: an evaluation has no objectives, a run on real data has no planted truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from workflows import plots, tables


def write_plots(metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the figures that the metrics allow as PNG.

    Args:
        metrics: as in `metrics.json`.
        folder: where to; created if absent.

    Returns:
        The files written: of `gate_weights.png`, `reliability.png`, `length_bias.png`,
        `baselines.png` those whose sections are present.
    """
    pairs, debias = metrics.get("pairs") or {}, metrics.get("debias") or {}
    figures: dict[str, plots.Figure] = {}
    if weights := (metrics.get("gate") or {}).get("weights_by_domain"):
        figures["gate_weights"] = plots.gate_weights(weights)
    if curves := metrics.get("reliability"):
        figures["reliability"] = plots.reliability(curves, pairs)
    if debias.get("before") and debias.get("after"):
        figures["length_bias"] = plots.length_bias(debias)
    if any("macro" in found for found in pairs.values()):
        figures["baselines"] = plots.baselines(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1])
    return written


def print_summary(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints the tables that the metrics allow.

    Args:
        metrics: as in `metrics.json`.
        console: where to; it decides on width and color.
    """
    pairs = metrics.get("pairs") or {}
    by_source = {name: found for name, found in pairs.items() if found.get("per_source")}
    sections = (
        (metrics.get("objectives"), tables.objectives_table),
        (metrics.get("left_out"), tables.left_out_line),
        (metrics.get("debias"), tables.debias_line),
        (pairs, tables.scorers_table),
        (metrics.get("comparisons"), tables.comparisons_table),
        (by_source, tables.sources_table),
        ((metrics.get("gate") or {}).get("weights_by_domain"), tables.weights_table),
        (metrics.get("leave_one_out"), tables.leave_one_out_table),
        (metrics.get("planted"), tables.planted_table),
    )
    for section, shown in sections:
        if section:
            console.print(shown(section))
            console.print()
