"""Fills the template with a finished run's files, whose names and texts are never markup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from scipy.special import expit

from panoply.report.page import choices, objectives, scorers, strategies, summary, training
from panoply.report.page.charts import POINTS
from panoply.report.tables import count, interval, number

Section: TypeAlias = Mapping[str, Any]

LONGEST = 3000
"""Characters of a text that the page holds; `mistakes.json` has all of it."""
OPENING = 280
"""Characters of a long text that stand unfolded."""


def write_page(out: Path) -> Path:
    """Writes `OUT/report.html` from the files of a finished run and returns its path.

    Args:
        out: folder with `metrics.json` and `config.json`, and `mistakes.json` and `history.json`
            where there are.
    """
    file = out / "report.html"
    file.write_text(render(out.name, *map(_read, _files(out))), encoding="utf-8")
    return file


def render(
    title: str, metrics: Section, config: Section, mistakes: Section, history: Section
) -> str:
    """Returns the page of a run as HTML.

    Args:
        title: name of the run.
        metrics: `metrics.json`; sections that it lacks are left out.
        config: `config.json`.
        mistakes: `mistakes.json`; may be empty.
        history: `history.json`; may be empty.
    """
    shown = mistakes.get("mistakes", [])
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            metrics=metrics,
            config=config,
            mistakes=mistakes,
            history=history,
            choices=choices,
            strategies=strategies,
            drivers_axis=objectives.drivers_axis(shown),
            objectives=objectives,
            scorers=scorers,
            summary=summary,
            training=training,
            points=POINTS,
            opening=OPENING,
        )
    )


def confidence(contributions: list[Section]) -> str:
    """Returns how sure the gate is of the rejected response."""
    return f"{100 * expit(-sum(own['log_odds'] for own in contributions)):.0f} %"


def cut(text: str, longest: int = LONGEST) -> str:
    """Returns a text without its middle where it is too long; how much is missing stands there."""
    missing = len(text) - longest
    if missing <= 0:
        return text
    head, tail = text[: 2 * longest // 3], text[-(longest // 3) :]
    return f"{head}\n… {count(missing)} characters left out …\n{tail}"


def breakable(name: str) -> Markup:
    """Returns a name that may be broken behind its hyphens and underscores."""
    text = str(escape(name))
    for sign in "-_/":
        text = text.replace(sign, f"{sign}<wbr>")
    return Markup(text)


def _files(out: Path) -> list[Path]:
    return [out / f"{name}.json" for name in ("metrics", "config", "mistakes", "history")]


def _read(file: Path) -> Section:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "interval": interval,
        "confidence": confidence,
        "cut": cut,
        "breakable": breakable,
        "words": summary.words,
    }
    return environment
