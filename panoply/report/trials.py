"""The trials of a search: how each ended, and how a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from panoply.config.tune import Point
from panoply.report.progress import RunError
from panoply.report.results.pairs import RAW
from panoply.report.section import (
    Column,
    Curve,
    Curves,
    Line,
    Row,
    Table,
    count,
    defined,
    number,
    rows_of,
    short,
)

State: TypeAlias = Literal["finished", "stopped", "diverged", "failed"]
LABELS = {
    "normalizer": "normalizer",
    "momentum": "momentum",
    "interpolation": "interpolation rho",
    "pairs_per_source": "pairs per source",
    "head_lr": "learning rate, head",
    "lr": "learning rate, backbone",
}
CATEGORIES = ("normalizer", "pairs_per_source")
LOGARITHMIC = ("momentum", "head_lr", "lr")
SHOWN = 10
"""Trials in the table; `trials.json` has all."""
FOUR_DIGITS = partial(number, digits=4)


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of a point."""

    search: str
    number: int
    """Position in the order of starts, from 0, which is the defaults."""
    state: State
    """End of the trial: all the way, stopped by ASHA, without a finite loss, or lost."""
    point: Point
    select_loss: float | None
    """Macro log loss on *select* when it ended; None where there is none."""
    share: float | None
    """Share of a whole run's steps that were taken."""
    losses: tuple[float, ...]
    """Loss on *select* at every evaluation."""
    reason: str | None


def best(trials: Sequence[Trial], name: str) -> Trial:
    """Returns the trial of a search with the least loss among those that went all the way.

    Raises:
        RunError: none did.
    """
    tried = [trial for trial in trials if trial.search == name]
    ended = [trial for trial in tried if trial.state == "finished"]
    if not ended:
        reasons = "; ".join(sorted({trial.reason or trial.state for trial in tried}))
        raise RunError(
            f"none of the {len(tried)} trials of search {name!r} came to its end ({reasons}): "
            "lower the rates of `space`"
        )
    return min(ended, key=lambda trial: trial.select_loss or 0.0)


def cost(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Returns how many trials ended how, and what they cost in whole runs."""
    tried = [trial for trial in trials if trial.search == name]
    numbers: dict[str, Any] = {"num_trials": len(tried)}
    for state in get_args(State):
        numbers[state] = sum(trial.state == state for trial in tried)
    return numbers | {"whole_runs": sum(trial.share or 0.0 for trial in tried)}


def trials_table(trials: Sequence[Trial]) -> Table:
    """Returns the trials that went all the way and lost least on *select*, best first."""
    ended = [t for t in trials if t.state == "finished" and t.select_loss is not None]
    ended.sort(key=lambda t: t.select_loss or 0.0)
    columns = [
        Column("loss", FOUR_DIGITS),
        Column("normalizer", str),
        Column("momentum"),
        Column("rho", short, key="interpolation"),
        Column("pairs", count, key="pairs_per_source"),
        *(Column(name, "{:.1e}".format) for name in ("head_lr", "lr") if name in trials[0].point),
    ]
    shown = ended[:SHOWN]
    parts = {f"{t.search} {t.number}": {"loss": t.select_loss, **t.point} for t in shown}
    rows = rows_of(parts, columns)
    for i, trial in enumerate(shown):
        if trial.number == 0:
            rows[i] = replace(rows[i], note="defaults")
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
    curves = _points(trials, [trial.number + 1 for trial in trials])
    for search in dict.fromkeys(trial.search for trial in trials):
        tried = [trial for trial in trials if trial.search == search]
        steps = [trial.number + 1 for trial in tried]
        curves.append(Curve(search, steps, _best_so_far(tried), "steps"))
    title = "Log loss on select, which chooses: too good to be true at its least"
    across = "trial; the line is the best whole one so far"
    panels = [Curves(title, across, "log loss", curves, origin=defaults, file="search")]
    points: list[dict[str, Any]] = [dict(trial.point) for trial in trials]
    for name, label in LABELS.items():
        if name not in points[0]:
            continue
        values = [point[name] for point in points]
        if name in CATEGORIES:
            places = [str(value) for value in sorted(set(values))]
            curves = _points(trials, [str(value) for value in values])
            panel = Curves(label, label, "log loss", curves, places=places, file="search")
        else:
            logarithmic, curves = name in LOGARITHMIC, _points(trials, values)
            panel = Curves(label, label, "log loss", curves, logarithmic=logarithmic, file="search")
        panels.append(panel)
    return panels


def _best_so_far(trials: Sequence[Trial]) -> list[float | None]:
    """Returns the least loss of the whole trials up to each; None before the first."""
    losses = [t.select_loss if t.state == "finished" else None for t in trials]
    return [min(defined(losses[: i + 1]), default=None) for i in range(len(losses))]


def _points(trials: Sequence[Trial], at: Sequence[float | str]) -> list[Curve]:
    """Returns whole trials as filled points and stopped ones as hollow, at their last losses."""
    shapes: dict[State, tuple[str, Line]] = {
        "finished": ("whole", "points"),
        "stopped": ("stopped", "hollow"),
    }
    curves: list[Curve] = []
    for search in dict.fromkeys(trial.search for trial in trials):
        for state, (label, line) in shapes.items():
            kept = [i for i, t in enumerate(trials) if (t.search, t.state) == (search, state)]
            x, y = [at[i] for i in kept], [trials[i].select_loss for i in kept]
            curves.append(Curve(f"{search}: {label}", x, y, line, like=search))
    return curves
