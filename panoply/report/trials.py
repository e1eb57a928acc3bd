"""The trials of a search: what each came to, and how a person sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from panoply.config.tune import Point
from panoply.report.tables import RAW, number

State: TypeAlias = Literal["finished", "stopped", "diverged", "failed"]
COLORS = {"tpe": "#0072B2", "random": "#D55E00"}
MARKERS = {"tpe": "o", "random": "D"}
LABELS = {
    "normalizer": "normalizer",
    "momentum": "momentum",
    "interpolation": "interpolation rho",
    "pairs_per_source": "pairs per source",
    "head_lr": "learning rate, head",
    "lr": "learning rate, backbone",
}
LOGARITHMIC = ("momentum", "head_lr", "lr")
SHOWN = 10
"""Trials in the table; `trials.json` has all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a point."""

    search: str
    number: int
    """From 0, in the order of their start; 0 is the defaults."""
    state: State
    """All the way, stopped by ASHA, without a finite loss, or lost."""
    point: Point
    select_loss: float | None
    """Macro log loss on *select* when it ended; None where there is none."""
    share: float | None
    """Of a whole run's steps that were taken."""
    losses: tuple[float, ...]
    """At every look."""
    reason: str | None


def best(trials: Sequence[Trial], name: str) -> Trial:
    """Returns the trial of a search with the least loss among those that went all the way.

    Raises:
        RuntimeError: none did.
    """
    own = [trial for trial in trials if trial.search == name]
    ended = [trial for trial in own if trial.state == "finished"]
    if not ended:
        reasons = "; ".join(sorted({trial.reason or trial.state for trial in own}))
        raise RuntimeError(
            f"none of the {len(own)} trials of search {name!r} came to its end ({reasons}): lower "
            "the rates of `space`"
        )
    return min(ended, key=lambda trial: trial.select_loss or 0.0)


def cost(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Returns how many trials ended how, and what they cost in whole runs."""
    own = [trial for trial in trials if trial.search == name]
    return {
        "num_trials": len(own),
        **{
            state: sum(trial.state == state for trial in own)
            for state in ("finished", "stopped", "diverged", "failed")
        },
        "whole_runs": sum(trial.share or 0.0 for trial in own),
    }


def trials_table(trials: Sequence[Trial]) -> Table:
    """Returns the trials that went all the way and lost least on *select*, best first."""
    ended = [t for t in trials if t.state == "finished" and t.select_loss is not None]
    ended.sort(key=lambda t: t.select_loss or 0.0)
    title = f"Best {min(SHOWN, len(ended))} of {len(ended)} whole trials, of {len(trials)} begun"
    rates = [name for name in ("head_lr", "lr") if name in trials[0].point]
    table = _table(title, "trial", ("loss", "normalizer", "momentum", "rho", "pairs", *rates))
    for trial in ended[:SHOWN]:
        point: Mapping[str, Any] = trial.point
        table.add_row(
            Text(f"{trial.search} {trial.number}" + (" (defaults)" if not trial.number else "")),
            number(trial.select_loss, 4),
            point["normalizer"],
            f"{point['momentum']:.3f}",
            f"{point['interpolation']:.2f}",
            str(point["pairs_per_source"]),
            *(f"{point[name]:.1e}" for name in rates),
        )
    return table


def search_table(metrics: Mapping[str, Any]) -> Table:
    """Returns both winners and the defaults: chosen on *select*, judged on *test*."""
    columns = ("on select", "on test", "on test,\nwith temperature", "accuracy", "whole\nruns")
    title = "Log loss, mean over sources: select chooses, test decides"
    table = _table(title, "best of", columns)
    for name, loss in metrics["select_loss"].items():
        raw, fitted = (metrics["pairs"][key]["macro"] for key in (name + RAW, name))
        spent = metrics["search"].get(name, {}).get("whole_runs")
        numbers = (loss, raw["log_loss"], fitted["log_loss"], raw["accuracy"])
        table.add_row(Text(name), *(number(n, 4) for n in numbers), number(spent, 1))
    return table


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right", vertical="bottom")
    return table


def draw_trials(trials: Sequence[Trial], defaults: float) -> Figure:
    """Draws the best loss so far by trial, and the loss over each number that was searched.

    Args:
        trials: of both searches.
        defaults: the defaults' loss on *select*.
    """
    names = [name for name in LABELS if name in trials[0].point]
    num_rows = 1 + -(-len(names) // 3)
    figure = Figure(figsize=(9.0, 2.9 * num_rows), dpi=130, layout="constrained")
    figure.suptitle("Log loss on select, which chooses: too good to be true at its least")
    grid = figure.add_gridspec(num_rows, 3)
    top = figure.add_subplot(grid[0, :])
    for search in COLORS:
        own = [t for t in trials if t.search == search]
        each = [np.inf if t.state != "finished" else t.select_loss or np.inf for t in own]
        so_far = np.minimum.accumulate(each)
        so_far[~np.isfinite(so_far)] = np.nan
        top.step(range(1, len(own) + 1), so_far, where="post", color=COLORS[search], label=search)
        _scatter(top, own, [t.number + 1 for t in own], search)
    top.axhline(defaults, color="#707070", linestyle="--", linewidth=1, label="defaults")
    top.set_xlabel("trial; the line is the best whole one so far")
    top.set_ylabel("log loss")
    for at, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + at // 3, at % 3])
        _draw_over(axes, trials, name)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw_over(axes: Axes, trials: Sequence[Trial], name: str) -> None:
    values = [t.point[name] for t in trials]
    if name in ("normalizer", "pairs_per_source"):
        order = sorted(set(values))
        places = {value: at for at, value in enumerate(order)}
        axes.set_xticks(range(len(order)), [str(value) for value in order])
        axes.set_xlim(-0.5, len(order) - 0.5)
    else:
        places = {value: value for value in values}
        if name in LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
    for search, shift in zip(COLORS, (-0.1, 0.1), strict=True):
        own = [t for t in trials if t.search == search]
        beside = shift if name in ("normalizer", "pairs_per_source") else 0.0
        _scatter(axes, own, [places[t.point[name]] + beside for t in own], search)
    axes.set_xlabel(LABELS[name])


def _scatter(axes: Axes, trials: Sequence[Trial], places: Sequence[float], search: str) -> None:
    """Draws whole trials filled and stopped ones hollow, at their last look."""
    for state, face, label in (
        ("finished", COLORS[search], f"{search}: whole"),
        ("stopped", "none", f"{search}: stopped"),
    ):
        at = [i for i, t in enumerate(trials) if t.state == state]
        axes.scatter(
            [places[i] for i in at],
            [float(trials[i].select_loss or 0.0) for i in at],
            marker=MARKERS[search],
            s=22,
            facecolors=face,
            edgecolors=COLORS[search],
            label=label,
        )
