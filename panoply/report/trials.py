"""The trials of a search: how each ended, and how a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from panoply.config.tune import Point
from panoply.report.section import Column, Curve, Curves, Line, Row, Table, count, number, short
from panoply.report.sections.pairs import RAW

State: TypeAlias = Literal["finished", "stopped", "diverged", "failed"]
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
FOUR_DIGITS = partial(number, digits=4)


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
    tried = [trial for trial in trials if trial.search == name]
    ended = [trial for trial in tried if trial.state == "finished"]
    if not ended:
        reasons = "; ".join(sorted({trial.reason or trial.state for trial in tried}))
        raise RuntimeError(
            f"none of the {len(tried)} trials of search {name!r} came to its end ({reasons}): "
            "lower the rates of `space`"
        )
    return min(ended, key=lambda trial: trial.select_loss or 0.0)


def cost(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Returns how many trials ended how, and what they cost in whole runs."""
    tried = [trial for trial in trials if trial.search == name]
    return {
        "num_trials": len(tried),
        **{
            state: sum(trial.state == state for trial in tried)
            for state in ("finished", "stopped", "diverged", "failed")
        },
        "whole_runs": sum(trial.share or 0.0 for trial in tried),
    }


def trials_table(trials: Sequence[Trial]) -> Table:
    """Returns the trials that went all the way and lost least on *select*, best first."""
    ended = [t for t in trials if t.state == "finished" and t.select_loss is not None]
    ended.sort(key=lambda t: t.select_loss or 0.0)
    rates = [name for name in ("head_lr", "lr") if name in trials[0].point]
    rows: list[Row] = []
    for trial in ended[:SHOWN]:
        point: Mapping[str, Any] = trial.point
        name = f"{trial.search} {trial.number}"
        numbers = [point[key] for key in ("normalizer", "momentum", "interpolation")]
        cells = [trial.select_loss, *numbers, point["pairs_per_source"], *map(point.get, rates)]
        rows.append(Row(name, cells, note="" if trial.number else "defaults"))
    columns = [
        Column("loss", FOUR_DIGITS),
        Column("normalizer", str),
        Column("momentum"),
        Column("rho", short),
        Column("pairs", count),
        *(Column(name, "{:.1e}".format) for name in rates),
    ]
    title = f"Best {len(rows)} of {len(ended)} whole trials, of {len(trials)} begun"
    return Table(title, "trial", columns, rows)


def search_table(metrics: Mapping[str, Any]) -> Table:
    """Returns both winners and the defaults: chosen on *select*, judged on *test*."""
    rows: list[Row] = []
    for name, loss in metrics["select_loss"].items():
        raw, fitted = metrics["pairs"][name + RAW]["macro"], metrics["pairs"][name]["macro"]
        spent = metrics["search"].get(name, {}).get("whole_runs")
        losses = [loss, raw["log_loss"], fitted["log_loss"]]
        rows.append(Row(name, [*losses, raw["accuracy"], spent]))
    names = ("on select", "on test", "on test, with temperature", "accuracy")
    columns = [Column(name, FOUR_DIGITS) for name in names]
    columns.append(Column("whole runs", partial(number, digits=1)))
    title = "Log loss, mean over sources: select chooses, test decides"
    return Table(title, "best of", columns, rows)


def search_curves(trials: Sequence[Trial], defaults: float) -> list[Curves]:
    """Returns the best loss so far by trial, and the loss over each number that was searched.

    Args:
        trials: of all searches.
        defaults: the loss of the defaults on *select*.
    """
    searches = list(dict.fromkeys(trial.search for trial in trials))
    curves: list[Curve] = []
    for search in searches:
        tried = [trial for trial in trials if trial.search == search]
        curves.append(Curve(search, [t.number + 1 for t in tried], _best_so_far(tried), "steps"))
        curves += _points(tried, search, [t.number + 1 for t in tried])
    title = "Log loss on select, which chooses: too good to be true at its least"
    across = "trial; the line is the best whole one so far"
    panels = [Curves(title, across, "log loss", curves, origin=defaults, file="search")]
    names = [name for name in LABELS if name in trials[0].point]
    return [*panels, *(_loss_over(name, trials, searches) for name in names)]


def _loss_over(name: str, trials: Sequence[Trial], searches: Sequence[str]) -> Curves:
    """Returns the last losses over one of the numbers that were searched."""
    is_category = name in ("normalizer", "pairs_per_source")
    points: list[Curve] = []
    for search in searches:
        tried = [trial for trial in trials if trial.search == search]
        values = [_searched(trial, name) for trial in tried]
        at = [str(value) for value in values] if is_category else values
        points += _points(tried, search, at)
    order = sorted({_searched(trial, name) for trial in trials})
    return Curves(
        LABELS[name],
        LABELS[name],
        "log loss",
        points,
        logarithmic=name in LOGARITHMIC,
        places=[str(value) for value in order] if is_category else (),
        file="search",
    )


def _searched(trial: Trial, name: str) -> Any:
    point: Mapping[str, Any] = trial.point
    return point[name]


def _best_so_far(trials: Sequence[Trial]) -> list[float | None]:
    """Returns the least loss of the whole trials up to each; None before the first."""
    least: float | None = None
    losses: list[float | None] = []
    for trial in trials:
        if trial.state == "finished" and trial.select_loss is not None:
            least = min(least, trial.select_loss) if least is not None else trial.select_loss
        losses.append(least)
    return losses


def _points(trials: Sequence[Trial], search: str, at: Sequence[float | str]) -> list[Curve]:
    """Returns whole trials as filled points and stopped ones as hollow, at their last losses."""
    shapes: dict[State, tuple[str, Line]] = {
        "finished": ("whole", "points"),
        "stopped": ("stopped", "hollow"),
    }
    curves: list[Curve] = []
    for state, (label, line) in shapes.items():
        kept = [i for i, trial in enumerate(trials) if trial.state == state]
        losses = [trials[i].select_loss for i in kept]
        curves.append(Curve(f"{search}: {label}", [at[i] for i in kept], losses, line, like=search))
    return curves
