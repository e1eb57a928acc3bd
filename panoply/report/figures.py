"""Figures of a report by matplotlib: files in the run's folder, and drawings of its page.

Figures are built without pyplot, so drawing leaves no global state behind. Names are text, never
mathtext. In the page a drawing takes the colors of the page, light or dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from panoply.report.progress import visible
from panoply.report.section import Curve, Curves, Mark, Table, defined, is_defined

HUES = ("#0b5cad", "#d55e00", "#009e73", "#b3588a", "#4aa3d8", "#b8860b", "#7a5cc0", "#767676")
"""Colors of what has no order: strategies, arms, scorers."""
INK, SOFT, LINE, CARD = "#1a2230", "#566072", "#dcdee3", "#ffffff"
VARIABLES: Mapping[str, str] = {
    **{color: f"--hue{k}" for k, color in enumerate(HUES)},
    **{INK: "--ink", SOFT: "--soft", LINE: "--line", CARD: "--card"},
}
"""The variable of the page's style that each color stands for."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "panoply",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "figure.facecolor": CARD,
    "axes.facecolor": "none",
}
MARKERS: Mapping[Mark, tuple[str, str, float]] = {
    "dot": ("D", HUES[0], 30),
    "before": ("o", HUES[1], 30),
    "after": ("D", HUES[0], 24),
    "other": ("|", HUES[2], 70),
    "tick": ("|", SOFT, 50),
}
"""Shape, color and area of points on a scale."""
MOST_POINTS = 20
"""Points of a curve up to which each has a mark."""
LONGEST = 40
"""Characters of a name in a picture."""


def picture(blocks: Sequence[Table | Curves]) -> bytes:
    """Returns the picture of a table, or of the curves that share a file, as PNG."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        tables = [block for block in blocks if isinstance(block, Table)]
        curves = [block for block in blocks if isinstance(block, Curves)]
        figure = _table_figure(tables[0]) if tables else _curves_figure(curves)
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def svg(curves: Curves) -> Markup:
    """Returns curves as SVG for a page that has a style for VARIABLES; its legend is the page's."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        figure.patch.set_visible(False)
        draw(figure.subplots(), curves)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        # HTML has no namespaces; two drawings of a page must not share an id that nothing needs.
        element.tag = element.tag.rpartition("}")[2]
        named = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if re.fullmatch(r"[a-z0-9]+_\d+", named.get("id", ""), re.IGNORECASE):
            del named["id"]
        element.attrib = named
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
    del root.attrib["width"], root.attrib["height"]
    label = f"{curves.title}: {curves.up}, by {curves.across}"
    root.attrib |= {"role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return Markup(text)


def draw(axes: Axes, curves: Curves) -> None:
    """Draws curves into an empty frame."""
    if curves.places:
        axes.plot(list(curves.places), [np.nan] * len(curves.places))
    if curves.origin is not None:
        axes.axhline(curves.origin, color=SOFT, linewidth=1, linestyle="--")
    if curves.diagonal:
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linewidth=1, linestyle="--")
    if curves.stacked:
        _draw_stack(axes, curves.drawn, curves)
    else:
        for k, curve in enumerate(curves.drawn):
            color = HUES[curves.hue(curve) % len(HUES)]
            # The first lies on top.
            style = {"color": color, "linewidth": 2.4 if k == 0 else 1.4, "zorder": 3 - k / 100}
            _draw_curve(axes, curve, style)
    for k, (place, name) in enumerate(curves.events):
        axes.axvline(place, color=INK, linewidth=1, linestyle=":")
        # In steps, so that the names of neighbors stand over each other.
        offset = (0, 2 + 9 * (k % 3))
        at = ("data", "axes fraction")
        axes.annotate(readable(name), (place, 1), offset, at, "offset points", fontsize=8)
    if curves.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif _counts(curves):  # rounds and steps have no halves
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(curves.across)
    axes.set_ylabel(curves.up)
    axes.grid(visible=True, axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _counts(curves: Curves) -> bool:
    """Returns whether the curves stand over whole numbers."""
    places = [place for curve in curves.drawn for place in curve.x]
    return bool(places) and all(not isinstance(x, str) and float(x).is_integer() for x in places)


def _draw_stack(axes: Axes, drawn: Sequence[Curve], curves: Curves) -> None:
    """Draws shares as bars upon each other; what is not defined has no height."""
    below = np.zeros(len(drawn[0].x) if drawn else 0)
    for curve in drawn:
        share = np.nan_to_num(np.array(curve.y, np.float64))
        color, label = HUES[curves.hue(curve) % len(HUES)], readable(curve.name)
        axes.bar(list(curve.x), share, bottom=below, color=color, width=0.9, label=label)
        below += share


def _draw_curve(axes: Axes, curve: Curve, style: dict[str, Any]) -> None:
    x, y = list(curve.x), np.array(curve.y, np.float64)
    label, color, zorder = readable(curve.name), style["color"], style["zorder"]
    match curve.line:
        case "points" | "hollow":
            face = color if curve.line == "points" else "none"
            axes.scatter(x, y, s=22, facecolors=face, edgecolors=color, label=label)
        case "steps":
            axes.step(x, y, where="post", label=label, **style)
        case "faint":
            axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
        case "solid" | "dashed":
            kept = [i for i, value in enumerate(y) if np.isfinite(value)]
            marker = "o" if len(kept) <= MOST_POINTS and not curve.size else ""
            line = f"{'-' if curve.line == 'solid' else '--'}{marker}"
            axes.plot([x[i] for i in kept], y[kept], line, markersize=4, label=label, **style)
    if curve.size:
        area = 60 * np.array(curve.size) / max(curve.size)
        axes.scatter(x, y, s=area, color=color, edgecolors=CARD, linewidths=0.5, zorder=zorder)


def _curves_figure(panels: Sequence[Curves]) -> Figure:
    """Draws one frame, or several in rows of two, with their titles and legends."""
    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.4 if columns == 1 else 11, 4.2 * num_rows), layout="constrained")
    frames = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes, curves in zip(frames, panels, strict=False):
        draw(axes, curves)
        axes.set_title(
            visible(curves.title), loc="left", pad=30 if curves.events else 6, fontsize=10
        )
        if len(curves.drawn) > 1:
            axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
    for axes in frames[len(panels) :]:
        axes.set_axis_off()
    return figure


def _table_figure(table: Table) -> Figure:
    longest = max(len(readable(row.name)) for row in table.rows)
    if table.measure:
        height = 1.6 + 0.26 * len(table.rows)
        figure = Figure(figsize=(4.6 + 0.08 * longest, height), layout="constrained")
        axes = figure.subplots()
        _draw_rows(axes, table)
        if axes.get_legend_handles_labels()[0]:  # none where no row has a number
            figure.legend(loc="outside lower center", ncols=4)
    else:
        width = 1.6 + 0.08 * longest + 0.62 * len(table.columns)
        height = 2.4 + 0.3 * len(table.rows)
        figure = Figure(figsize=(max(width, 6.0), height), layout="constrained")
        _draw_heat(figure.subplots(), table)
    figure.suptitle(visible(table.title), fontsize=10)
    return figure


def _draw_rows(axes: Axes, table: Table) -> None:
    """Draws a table's marks, the first row on top."""
    places = range(len(table.rows))[::-1]
    axes.axvline(table.origin, color=SOFT, linewidth=1, linestyle="--")
    for k, column in enumerate(table.columns):
        if column.mark is None:
            continue
        legend = readable(column.name)
        for place, row in zip(places, table.rows, strict=True):
            cell = row.cells[k]
            color = HUES[0] if row.style == "strong" else INK
            if column.mark == "interval":
                if len(ends := defined(cell or ())) == 2:
                    axes.hlines(place, ends[0], ends[1], color=color, linewidth=2, label=legend)
                    legend = ""
            elif column.mark == "bar":
                if is_defined(cell):
                    axes.barh(place, cell - table.origin, left=table.origin, color=HUES[4])
            elif points := defined(cell if column.mark == "tick" else [cell]):
                marker, hue, area = MARKERS[column.mark]
                hue = color if column.mark == "dot" else hue
                at = [place] * len(points)
                axes.scatter(points, at, marker=marker, color=hue, s=area, label=legend, zorder=3)
                legend = ""
    axes.set_yticks(list(places), [readable(row.name) for row in table.rows])
    axes.set_xlabel(table.measure)
    axes.grid(visible=True, axis="x", color=LINE, linewidth=0.6)


def _draw_heat(axes: Axes, table: Table) -> None:
    """Draws a table's cells, shaded by their values; columns without heat and dim rows are not."""
    grid = np.full((len(table.rows), len(table.columns)), np.nan)
    ends = [column.heat for column in table.columns if column.heat]
    for i, row in enumerate(table.rows):
        texts = table.texts(row)
        for k, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            if column.heat and row.style != "dim" and is_defined(cell):
                grid[i, k] = cell
            low, high = column.heat or (0.0, 1.0)
            is_dark = grid[i, k] < low + 0.55 * (high - low)
            color = "white" if is_dark else "black"
            axes.text(k, i, texts[k], ha="center", va="center", color=color, fontsize=8)
    colors = colormaps["cividis"].with_extremes(bad="#e6e6e6")
    low, high = ends[0] if ends else (0.0, 1.0)
    image = axes.imshow(np.ma.masked_invalid(grid), cmap=colors, vmin=low, vmax=high, aspect="auto")
    names = [readable(column.name) for column in table.columns]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(table.rows)), [readable(row.name) for row in table.rows])
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05)


def readable(name: str) -> str:
    """Returns a name that is not too long for a picture, with control characters spelled out."""
    text = visible(name.replace("\n", " "))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
