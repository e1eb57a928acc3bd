"""How a preference run trained, as tables of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from panoply.report.page.charts import Cell, Grid, shaded
from panoply.report.page.summary import words
from panoply.report.tables import count, number

Section: TypeAlias = Mapping[str, Any]


def course(training: Mapping[str, Section]) -> Grid:
    """What each model was trained on, and how its loss fell; log losses on *select* in turn."""
    columns = (
        "steps",
        "tokens",
        "seconds",
        "first loss",
        "last losses",
        "on select",
        "mean |margin|",
    )
    rows = [
        (
            words(name),
            [
                Cell(count(found["num_steps"])),
                Cell(count(found["tokens"])),
                Cell(count(found["seconds"])),
                Cell(number(found["first_loss"])),
                Cell(number(found["last_loss"])),
                Cell(", ".join(map(number, found["select_loss"][-4:]))),
                Cell(number(found["margin_mean_absolute"])),
            ],
        )
        for name, found in training.items()
    ]
    return Grid("Training", "model", columns, rows)


def weights(training: Mapping[str, Section]) -> Grid:
    """What MORE weighed on average; no rows where sources were not weighed."""
    weighed = {name: found["mean_weights"] for name, found in training.items()}
    weighed = {name: own for name, own in weighed.items() if own}
    sources = list(dict.fromkeys(source for own in weighed.values() for source in own))
    most = max((value for own in weighed.values() for value in own.values()), default=1.0)
    rows = [
        (words(name), [shaded(own[s], number(own[s]), 0.0, most) for s in sources])
        for name, own in weighed.items()
    ]
    return Grid("Mean weight of each source", "model", sources, rows)
