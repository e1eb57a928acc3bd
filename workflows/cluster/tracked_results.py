"""Holds what trackers get of a run: its entry at the beginning, its steps, and its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from panoply.report.headline import finite_numbers, headline

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Steps: TypeAlias = Callable[[str, Rows], None]
"""Takes the name of a model and the numbers of some of its steps."""

ENTRY_FILE = "tracking.json"
PAGE_KINDS = (".png", ".svg", ".html", ".json")
"""Endings of the files of a run that trackers keep."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run's entry in its trackers, except its results; stored in `OUT/tracking.json`."""

    experiment: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    model: str
    """Name under which `OUT/model` is registered; empty for none."""
    steps: str
    """The model of `history.json` that the run is about; empty for none."""
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """By kind of data: its summary with `id`, and its `files`."""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a finished run, from its folder."""

    metrics: Mapping[str, Any]
    history: Mapping[str, Rows]
    """Steps of each model."""
    trials: Rows
    """Of a search."""
    files: Sequence[Path]
    """Pages, pictures and numbers."""

    @classmethod
    def read(cls, out: Path) -> Results:
        """Reads the files of a run; what a run does not leave is empty."""
        files = [path for path in sorted(out.iterdir()) if path.suffix in PAGE_KINDS]
        return cls(
            metrics=_read_json(out / "metrics.json") or _read_json(out / "matrix.json"),
            history=_read_json(out / "history.json"),
            trials=_read_json(out / "trials.json").get("trials", ()),
            files=[path for path in files if path.name != ENTRY_FILE],
        )

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that a tracker draws."""
        return headline(self.metrics)


def step_numbers(group: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a step, named as in `train/loss`."""
    values = finite_numbers({name: value for name, value in row.items() if name != "step"})
    return {f"{group}/{name}": value for name, value in values.items()}


def _read_json(file: Path) -> dict[str, Any]:
    """Returns the content of a file; nothing if there is none."""
    return json.loads(file.read_text()) if file.is_file() else {}
