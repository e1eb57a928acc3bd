"""Figures of preference training: how the losses fell, and what MORE weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from panoply.report.plots import BLUE, GRAY, GREEN, ORANGE, readable

History: TypeAlias = Sequence[Mapping[str, Any]]
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", GRAY)
SMOOTHED = 10
"""Steps of the running mean that is drawn over the single ones."""


def draw_training(histories: Mapping[str, History], sources: Sequence[str], folder: Path) -> None:
    """Writes `training.png` and, where sources were weighed, `source_weights.png`."""
    training_curves(histories).savefig(folder / "training.png")
    weighed = [row for rows in histories.values() for row in rows if "source_weights" in row]
    if weighed:
        source_weights(weighed, sources).savefig(folder / "source_weights.png")


def training_curves(histories: Mapping[str, History]) -> Figure:
    """Draws each model's loss by step, its running mean, and the looks at *select*."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(np.log(2), color=GRAY, linewidth=1, linestyle=":", label="a coin: ln 2")
    for (name, rows), color in zip(histories.items(), COLORS, strict=False):
        step, loss = (np.array([row[key] for row in rows]) for key in ("step", "loss"))
        axes.plot(step, loss, color=color, alpha=0.25, linewidth=1)
        width = min(SMOOTHED, len(loss))
        mean = np.convolve(loss, np.full(width, 1 / width), mode="valid")
        axes.plot(step[width - 1 :], mean, color=color, label=f"{name}: loss")
        looks = [(row["step"], row["select_loss"]) for row in rows if "select_loss" in row]
        if looks:
            axes.plot(*zip(*looks, strict=True), "o--", color=color, label=f"{name}: select")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the step, log loss on select (nats)")
    axes.set_title("How training went", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def source_weights(rows: History, sources: Sequence[str]) -> Figure:
    """Draws MORE's weight of each source by step; at 1 / K all count the same."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    step = [row["step"] for row in rows]
    weights = np.array([row["source_weights"] for row in rows])
    axes.axhline(1 / len(sources), color=GRAY, linewidth=1, linestyle=":", label="1 / K")
    for k, source in enumerate(sources):
        color = COLORS[k % len(COLORS)]
        axes.plot(step, weights[:, k], color=color, alpha=0.3, linewidth=1)
        width = min(SMOOTHED, len(step))
        mean = np.convolve(weights[:, k], np.full(width, 1 / width), mode="valid")
        axes.plot(step[width - 1 :], mean, color=color, label=readable(source))
    axes.set_xlabel("step")
    axes.set_ylabel("weight")
    axes.set_ylim(0, None)
    axes.set_title("What MORE weighed", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2)
    return figure
