"""Figures of a LASeR run: held-out quality by round, and which arms were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from panoply.report.plots import GRAY, readable
from panoply.report.training_plots import COLORS

Rows: TypeAlias = Sequence[Mapping[str, Any]]
SHARE = "share/"


def draw_laser(histories: Mapping[str, Rows], metrics: Mapping[str, Any], folder: Path) -> None:
    """Writes `held_out.png`, and `shares.png` where the first strategy chose among arms."""
    looks = {
        n: found["held_out"] for n, found in metrics["strategies"].items() if "held_out" in found
    }
    if looks:
        held_out(looks).savefig(folder / "held_out.png")
    name, rows = next(iter(histories.items()))
    if rows and any(key.startswith(SHARE) for key in rows[0]):
        told = metrics["choices"].get(name, {}).get("alarms", [])
        shares(rows, told).savefig(folder / "shares.png")


def held_out(looks: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the held-out quality of each strategy by the rounds before it."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for k, (name, found) in enumerate(looks.items()):
        rounds = [int(rounds) for rounds in found]
        style = "o-" if not k else "o--"
        axes.plot(rounds, list(found.values()), style, color=COLORS[k % len(COLORS)], label=name)
    axes.set_xlabel("rounds")
    axes.set_ylabel("right responses to held-out prompts")
    axes.set_title("What the policies came to", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=2)
    return figure


def shares(rows: Rows, alarms: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the share of each arm by round, with alarms as lines."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    arms = [key.removeprefix(SHARE) for key in rows[0] if key.startswith(SHARE)]
    step = [row["step"] for row in rows]
    share_KR = np.array([[row[f"{SHARE}{arm}"] for row in rows] for arm in arms])
    colors = [COLORS[k % len(COLORS)] for k in range(len(arms))]
    below = np.zeros(len(step))
    for arm, share_R, color in zip(arms, share_KR, colors, strict=True):
        axes.bar(step, share_R, bottom=below, color=color, label=readable(arm), width=0.9)
        below += share_R
    for alarm in alarms:
        axes.axvline(alarm["round"], color=GRAY, linestyle=":")
        axes.text(alarm["round"], 1.01, alarm["name"], color=GRAY, fontsize=8)
    axes.set_xlabel("round")
    axes.set_ylabel("share of the prompts")
    axes.set_title("Which arm was chosen", loc="left", pad=16)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure
