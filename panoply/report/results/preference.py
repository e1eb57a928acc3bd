"""Sections about preference training: how losses fell, and how MORE weighed the sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from panoply.report.results.pairs import label_of
from panoply.report.section import (
    Block,
    Column,
    Curve,
    Curves,
    Metrics,
    Section,
    Table,
    count,
    number,
    rows_of,
)

SMOOTHED = 10
"""Steps of the running mean that is drawn over the single ones."""
EQUAL = 1e-9
EQUAL_MIXING = (
    "With two sources and gradients of the same norm (the normalizer l2), MORE's weights "
    "are 1/2 each in every step: this is balanced mixing. Another normalizer, or a third source, "
    "makes a difference."
)
LAST = 4
"""Evaluations on *select* whose losses a table shows."""


def training(models: Mapping[str, Metrics], history: Mapping[str, Sequence[Metrics]]) -> Section:
    """Returns what each model was trained on, and how its loss fell.

    Args:
        models: the part `training` of the metrics, by model.
        history: `history.json`, by model: the steps.
    """
    blocks: list[Block] = []
    steps = {name: history[name] for name in models if history.get(name)}
    if steps:
        blocks.append(_losses(steps))
    weights_of = {name: entry["mean_weights"] for name, entry in models.items()}
    weighed = {name: weights for name, weights in weights_of.items() if weights}
    for name, weights in weighed.items():
        rows = [row for row in steps.get(name, ()) if "source_weights" in row]
        if rows:
            blocks.append(_weights_by_step(rows, list(weights)))
    blocks.append(_summary(models))
    if weighed:
        blocks.append(_mean_weights(weighed))
    if any(is_equal_mixing(weights) for weights in weighed.values()):
        blocks.append(EQUAL_MIXING)
    note = (
        "Losses are those of a step; ln 2 = 0.693 is what a coin loses. The last losses are the "
        f"mean of {SMOOTHED} steps."
    )
    return Section("training", "Training", note, blocks, on_terminal=False)


def is_equal_mixing(weights: Mapping[str, float]) -> bool:
    """Returns whether MORE's mean weights are those of two sources that always counted the same."""
    return len(weights) == 2 and all(abs(weight - 0.5) < EQUAL for weight in weights.values())


def _losses(history: Mapping[str, Sequence[Metrics]]) -> Curves:
    """Returns the loss of each model by step, its running mean, and the log loss on *select*."""
    curves: list[Curve] = []
    for name, rows in history.items():
        loss = f"{label_of(history)(name)}: loss"
        curves += smoothed(loss, [row["step"] for row in rows], [row["loss"] for row in rows])
        evaluated = [row for row in rows if "select_loss" in row]
        x, y = [row["step"] for row in evaluated], [row["select_loss"] for row in evaluated]
        curves.append(Curve(f"{label_of(history)(name)}: select", x, y, "dashed", like=loss))
    title, origin = "Loss of the steps, and log loss on select", math.log(2)
    return Curves(title, "step", "loss (nats)", curves, origin=origin, file="training")


def _weights_by_step(rows: Sequence[Metrics], sources: Sequence[str]) -> Curves:
    """Returns MORE's weight of each source by step; at 1 / K all count the same."""
    steps = [row["step"] for row in rows]
    curves: list[Curve] = []
    for k, source in enumerate(sources):
        curves += smoothed(source, steps, [row["source_weights"][k] for row in rows])
    title, up = "MORE's weight of each source", "weight; the dashed line is 1 / K"
    origin = 1 / len(sources)
    return Curves(title, "step", up, curves, origin=origin, file="source_weights")


def smoothed(name: str, x: Sequence[float], y: Sequence[float]) -> list[Curve]:
    """Returns the values as a faint curve, and their running mean."""
    width = min(SMOOTHED, len(y))
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid")
    return [
        Curve(f"{name}, each step", x, y, "faint", like=name),
        Curve(name, x[width - 1 :], mean.tolist()),
    ]


def _summary(models: Mapping[str, Metrics]) -> Table:
    columns = [
        Column("steps", count, key="num_steps"),
        Column("tokens", count),
        Column("seconds", count),
        Column("first loss", key="first_loss"),
        Column("last losses", key="last_loss"),
        Column("on select", _last_losses, key="select_loss"),
        Column("mean |margin|", key="margin_mean_absolute"),
    ]
    return Table("Training", "model", columns, rows_of(models, columns, (), label_of(models)))


def _last_losses(losses: Sequence[float]) -> str:
    return ", ".join(map(number, losses[-LAST:]))


def _mean_weights(weighed: Mapping[str, Mapping[str, float]]) -> Table:
    heat = (0.0, max(max(entry.values()) for entry in weighed.values()))
    columns = [Column(source, heat=heat) for source in dict.fromkeys(chain(*weighed.values()))]
    rows = rows_of(weighed, columns, (), lambda _: "MORE")
    return Table("Mean weight of each source", "model", columns, rows)
