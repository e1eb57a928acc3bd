"""Figures of a run: what the gate prefers, calibration, length bias, and what the gate has to beat.

Every function takes one section of `metrics.json` and returns a figure. Figures are built without
pyplot, so drawing leaves no global state behind; colors are those of Okabe and Ito, and shapes
differ too.

Legend: `R` rows of a heat map (domains), `O` objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from panoply.report.tables import LEADS
from panoply.types import Array

Section: TypeAlias = Mapping[str, Any]

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"
MAX_COLUMNS = 15
"""Objectives that the heat map shows on their own when there are more of them."""
CURVES = (
    ("gate", BLUE, "o", "-"),
    ("best_fixed", ORANGE, "s", "--"),
    ("linear_bt", GREEN, "^", ":"),
    ("score", BLUE, "o", "-"),
    ("lower_bound", ORANGE, "s", "--"),
    ("score_raw", GREEN, "^", ":"),
    ("mixed", ORANGE, "s", "--"),
)


def readable(name: str, longest: int = 40) -> str:
    """Returns a name as a label: no underscores in names of scorers, no mathtext, not too long."""
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    return short.replace("$", r"\$")


def scorer_label(name: str) -> str:
    """Returns the name of a scorer in words."""
    note = " (source known)" if name.endswith("_per_source") else ""
    return readable(name.replace("_", " ") + note)


def gate_weights(weights: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the gate's mean weight on each objective in each domain as a heat map.

    Args:
        weights: domain -> objective -> mean weight. Of more than MAX_COLUMNS objectives, those
            with the largest weight in any domain are shown, and the sum of the others.
    """
    domains = list(weights)
    names = list(dict.fromkeys(name for row in weights.values() for name in row))
    values_RO = np.array([[weights[d].get(n, np.nan) for n in names] for d in domains], np.float64)
    largest_O = np.max(np.nan_to_num(values_RO), axis=0)
    shown = np.argsort(-largest_O, kind="stable")[:MAX_COLUMNS]
    num_others = len(names) - len(shown)
    grid = values_RO[:, shown]
    columns = [names[i] for i in shown]
    if num_others:
        others = np.nansum(np.delete(values_RO, shown, axis=1), axis=1)
        grid = np.column_stack([grid, others])
        columns.append(f"other (sum of {num_others})")
    title = "What the gate weighs: mean weight of each objective, by domain"
    figure = _figure(title, max(7.0, 3.2 + 0.62 * len(columns)), 2.9 + 0.36 * len(domains))
    axes = figure.subplots()
    top = float(np.nanmax(grid[:, : len(shown)], initial=0.0)) or 1.0
    _draw_grid(axes, grid, len(shown), (0.0, top), "mean weight")
    _name_cells(axes, domains, columns)
    return figure


def matrix(found: Mapping[str, Mapping[str, Section]], means: Mapping[str, Section]) -> Figure:
    """Draws the length-balanced accuracy of every model on every source as a heat map.

    Args:
        found: model -> source -> `accuracy_length_balanced` and `trained_on`, which underlines.
        means: model -> `in_domain`, `out_of_domain`: sections with a mean, or nothing.
    """
    models, sources = list(found), list(next(iter(found.values())))
    key, kinds = "accuracy_length_balanced", ("in_domain", "out_of_domain")
    cells = [
        [found[m][s].get(key) for s in sources] + [means[m][kind].get(key) for kind in kinds]
        for m in models
    ]
    grid = np.array(cells, np.float64)
    columns = [*sources, *(f"mean {kind.replace('_', ' ')}" for kind in kinds)]
    title = "Every model on every source: length-balanced accuracy (underlined: trained on)"
    figure = _figure(title, max(9.0, 3.6 + 0.72 * len(columns)), 2.9 + 0.36 * len(models))
    axes = figure.subplots()
    top = float(np.nanmax(grid[:, : len(sources)], initial=0.5))
    _draw_grid(axes, grid, len(sources), (0.5, max(top, 0.55)), "accuracy (0.5 and less: dark)")
    _name_cells(axes, models, columns)
    for row, column in np.ndindex(len(models), len(sources)):
        if found[models[row]][sources[column]]["trained_on"]:
            ends = (column - 0.3, column + 0.3)
            axes.hlines(row + 0.36, *ends, color="black", linewidth=4)
            axes.hlines(row + 0.36, *ends, color="white", linewidth=2)
    return figure


def _name_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    names = [readable(name) for name in columns]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [readable(name) for name in rows])


def _draw_grid(
    axes: Axes, grid: Array, num_colored: int, bounds: tuple[float, float], label: str
) -> None:
    """Draws numbered cells; the columns behind `num_colored` stay uncolored, they are sums."""
    colored = np.array(grid)
    colored[:, num_colored:] = np.nan
    low, high = bounds
    colors = colormaps["cividis"].with_extremes(bad="#E6E6E6")
    image = axes.imshow(np.ma.masked_invalid(colored), cmap=colors, vmin=low, vmax=high)
    axes.set_aspect("auto")
    for (row, column), value in np.ndenumerate(grid):
        dark = column < num_colored and value < low + 0.55 * (high - low)
        text = "-" if np.isnan(value) else f"{value:.2f}".removeprefix("0")
        color = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    for side in range(1, grid.shape[1]):
        axes.axvline(side - 0.5, color="white", linewidth=4 if side == num_colored else 1)
    for side in range(1, grid.shape[0]):
        axes.axhline(side - 0.5, color="white", linewidth=1)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, pad=0.015, label=label, fraction=0.05)


def reliability(curves: Mapping[str, Section], pairs: Mapping[str, Section]) -> Figure:
    """Draws stated confidence against accuracy, and how many pairs each bin holds.

    Args:
        curves: scorer -> `count`, `confidence`, `accuracy` of each bin of [1/2, 1].
        pairs: scorer -> `ece`, `ece_floor`, for the legend; scorers may be absent.
    """
    title = "Are stated confidences met? Calibration of the predicted winner"
    figure = _figure(title, 6.8, 7.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    upper.plot([0.5, 1], [0.5, 1], color=GRAY, linewidth=1, label="perfect calibration")
    drawn = [curve for curve in CURVES if curve[0] in curves]
    for number, (name, color, marker, line) in enumerate(drawn):
        count, stated, right = _columns(curves[name], ("count", "confidence", "accuracy"))
        filled = count > 0
        style = {"color": color, "marker": marker, "linestyle": line, "markersize": 6}
        label = scorer_label(name) + _calibration(pairs.get(name, {}))
        upper.plot(stated[filled], right[filled], label=label, **style)
        step = 0.5 / len(count)
        width = 0.86 * step / len(drawn)
        center = 0.5 + step * (np.arange(len(count)) + 0.5)
        offset = (number - (len(drawn) - 1) / 2) * width
        lower.bar(center + offset, count, width, color=color)
    upper.set_ylabel("share of predicted winners that won")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    upper.grid(alpha=0.25)
    lower.set_ylabel("pairs in bin")
    lower.set_xlabel("confidence in the predicted winner")
    lower.set_xlim(0.49, 1.01)
    return figure


def _calibration(metrics: Section) -> str:
    error, floor = _numbers([metrics.get("ece"), metrics.get("ece_floor")])
    return "" if np.isnan(error) else f": ECE {error:.3f} (floor {floor:.3f})"


def length_bias(debias: Section) -> Figure:
    """Draws what debiasing does to each objective, and to accuracy by which response is longer.

    Args:
        debias: `before` and `after` by objective in sample, `heldout.after`, and `accuracy` by
            scorer and stratum; the last two may be absent.
    """
    names = sorted(debias["before"], key=lambda n: _size(debias["before"][n]))
    strata = debias.get("accuracy") or {}
    heights = ([0.3 + 0.6 * len(strata)] if strata else []) + [0.9 + 0.21 * len(names)]
    figure = _figure("How length bias changes with debiasing", 7.6, sum(heights) + 1.3)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if strata:
        _draw_strata(panels[0], strata)
    held_out = (debias.get("heldout") or {}).get("after") or {}
    axes, rows = panels[-1], np.arange(len(names))
    before, after = ([_size(debias[k].get(n)) for n in names] for k in ("before", "after"))
    axes.hlines(rows, after, before, color="#C8C8C8", linewidth=1.5, zorder=1)
    axes.scatter(before, rows, color=ORANGE, marker="o", s=30, label="before", zorder=2)
    axes.scatter(after, rows, color=BLUE, marker="D", s=24, label="after, in sample", zorder=3)
    if held_out:
        outside = [_size(held_out.get(name)) for name in names]
        axes.scatter(
            outside, rows, color=GREEN, marker="|", s=70, label="after, held out", zorder=4
        )
    axes.set_yticks(rows, [readable(name) for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(left=-0.01)
    axes.set_xlabel("|Spearman| with predicted length")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_strata(axes: Axes, strata: Section) -> None:
    labels: list[str] = []
    for scorer, found in reversed(list(strata.items())):
        for key in ("chosen_shorter", "chosen_longer"):
            ends = _numbers([found.get(k, {}).get(key) for k in ("before", "after")])
            _draw_change(axes, len(labels), float(ends[0]), float(ends[1]))
            labels.append(f"{scorer_label(scorer)}, {key.replace('_', ' ')}")
    axes.axvline(0.5, color=GRAY, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.margins(x=0.15)
    axes.set_xlabel("accuracy")


def _draw_change(axes: Axes, row: int, before: float, after: float) -> None:
    axes.hlines(row, before, after, color="#C8C8C8", linewidth=2, zorder=1)
    for value, color, marker, right in (
        (before, ORANGE, "o", before >= after),
        (after, BLUE, "D", after > before),
    ):
        axes.scatter(value, row, color=color, marker=marker, s=36, zorder=2)
        if not np.isnan(value):
            axes.annotate(
                f"{value:.3f}",
                (value, row),
                (8 if right else -8, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                color=color,
                fontsize=9,
            )


def baselines(pairs: Mapping[str, Section]) -> Figure:
    """Draws the macro length-balanced accuracy of every scorer, best on top.

    Args:
        pairs: scorer -> `macro.accuracy_length_balanced`, `macro.ci95_length_balanced`, and
            `per_source`, whose sources become small ticks.
    """
    key = "accuracy_length_balanced"
    found = {name: _size(pairs[name].get("macro", {}).get(key)) for name in pairs}
    names = sorted((n for n, v in found.items() if not np.isnan(v)), key=lambda n: found[n])
    sources = {source for found in pairs.values() for source in found.get("per_source", {})}
    over = f": mean over {len(sources)} sources" if len(sources) > 1 else ""
    what = "The gate beside its rivals" if "gate" in pairs else "Length-balanced accuracy"
    figure = _figure(what + over, 7.8, 1.9 + 0.36 * len(names))
    axes = figure.subplots()
    for row, name in enumerate(names):
        by_source = pairs[name].get("per_source", {})
        each = _numbers([metrics.get(key) for metrics in by_source.values()])
        first = row == len(names) - 1
        axes.scatter(
            each,
            [row] * len(each),
            marker="|",
            s=60,
            color="#A0A0A0",
            linewidth=1,
            zorder=1,
            label="one source" if first and len(each) else None,
        )
        _draw_interval(axes, row, found[name], pairs[name]["macro"], leads=name in LEADS)
    axes.axvline(0.5, color=GRAY, linewidth=1, linestyle="--", label="chance", zorder=0.5)
    axes.set_yticks(range(len(names)), [scorer_label(name) for name in names])
    for label in axes.get_yticklabels():
        if label.get_text() in LEADS:
            label.set(color=BLUE, fontweight="bold")
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.set_xlabel("length-balanced accuracy (95 % interval)")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_interval(axes: Axes, row: int, value: float, macro: Section, *, leads: bool) -> None:
    color, size = (BLUE, 9) if leads else ("#303030", 6)
    low, high = _numbers((macro.get("ci95_length_balanced") or [None, None])[:2])
    if not np.isnan(low + high):
        axes.hlines(row, low, high, color=color, linewidth=2.6 if leads else 1.4, zorder=2)
    axes.plot(value, row, marker="D" if leads else "o", color=color, markersize=size, zorder=3)
    axes.annotate(
        f"{value:.3f}",
        (value, row),
        (0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # over the line of chance
        zorder=1.5,
    )


def _figure(title: str, width: float, height: float) -> Figure:
    """Returns an empty figure; its title is centered on all of it, so that it is not clipped."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    figure.suptitle(title)
    return figure


def _numbers(values: Sequence[float | None]) -> Array:
    """Returns the values, NaN where null."""
    return np.array(values, np.float64)


def _columns(curve: Section, keys: Sequence[str]) -> list[Array]:
    return [_numbers(curve[key]) for key in keys]


def _size(value: float | None) -> float:
    """Returns |value|, NaN where null."""
    return float("nan") if value is None else abs(value)
