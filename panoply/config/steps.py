"""Steps of a response: how a text is split into them, and how their scores become one.

A process reward model gives each step of a response a probability p_1 .. p_n of being right:

    min               min p_i
    product           p_1 p_2 ... p_n
    mean              1/n sum p_i
    geometric_mean    (p_1 p_2 ... p_n)^(1/n)
    last              p_n

`min` and `product` say whether a solution holds as a whole (arXiv 2312.08935, 2501.07301); a
product falls with the number of steps, and so prefers short solutions (arXiv 2410.01729).
A rule stands behind the place of a model or a table: `FOLDER?steps=product&split=lines`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, assert_never, cast, get_args
from urllib.parse import quote, unquote

from panoply.config import require

Aggregate: TypeAlias = Literal["min", "product", "mean", "geometric_mean", "last"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
BLANK_LINES, LINES = "blank_lines", "lines"
BREAKS: Mapping[str, re.Pattern[str]] = {
    BLANK_LINES: re.compile(r"\n[^\S\n]*\n"),
    LINES: re.compile(r"\n"),
}
MOST_STEPS = 400
"""Steps of a response; a text that has more was split at the wrong place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRule:
    """Settings by which a response is split into steps, and the steps' scores become one."""

    steps: Aggregate = "min"
    """Score of a response: the `min`, `product`, `mean`, `geometric_mean` or `last` of its steps'
    scores."""
    split: str = BLANK_LINES
    """End of a step: `blank_lines`, `lines`, or a text that stands between steps."""
    separator: str = ""
    """Token that the model was trained to read behind each step; empty: that of its layout."""

    def __post_init__(self) -> None:
        require(self.steps in AGGREGATES, "steps", self.steps, f"one of {list(AGGREGATES)}")
        allowed = f"'{BLANK_LINES}', '{LINES}', or a text that stands between steps"
        require(bool(self.split.strip()), "split", self.split, allowed)

    def __str__(self) -> str:
        return f"{self.steps} of steps that end at {self.split!r}"

    @property
    def query(self) -> str:
        """Settings as they stand behind a place, from `?` on."""
        default = StepRule()
        parts = [f"steps={self.steps}"]
        for name in ("split", "separator"):
            value: str = getattr(self, name)
            if value != getattr(default, name):
                parts.append(f"{name}={quote(value)}")
        return "?" + "&".join(parts)

    def split_text(self, response: str) -> list[str]:
        """Returns the steps of a response, without white space around them and empty ones.

        A response of white space alone is one empty step.

        Raises:
            ValueError: there are more than `MOST_STEPS`.
        """
        if self.split in BREAKS:
            parts = BREAKS[self.split].split(response)
        else:
            parts = response.split(self.split)
        steps = [part.strip() for part in parts if part.strip()] or [""]
        if len(steps) > MOST_STEPS:
            raise ValueError(
                f"the response has {len(steps):,} steps that end at {self.split!r}, and at most "
                f"{MOST_STEPS} are scored: name another `split` behind the model"
            )
        return steps

    def combined(self, steps: Sequence[float | None]) -> float | None:
        """Returns the score of a response by those of its steps; None where one of them is missing.

        Args:
            steps: scores in the order of the text; None of a step that has none.
        """
        scores = [score for score in steps if score is not None]
        if not scores or len(scores) < len(steps):
            return None
        match self.steps:
            case "min":
                return min(scores)
            case "product":
                return math.prod(scores)
            case "mean":
                return math.fsum(scores) / len(scores)
            case "geometric_mean":
                product = math.prod(scores)
                return product ** (1 / len(scores)) if product >= 0 else None
            case "last":
                return scores[-1]
            case _:
                assert_never(self.steps)


def split_off_rule(place: str) -> tuple[str, StepRule | None]:
    """Returns a place without the step rule behind it, and the rule; None where there is none.

    Other parameters of a place, as those of a URI of S3, stay where they are.

    Raises:
        ValueError: a setting of the rule is wrong, or stands there twice.
    """
    path, _, query = place.partition("?")
    names = {field.name for field in fields(StepRule)}
    values: dict[str, str] = {}
    others: list[str] = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or name not in names:
            others.append(part)
            continue
        require(name not in values, name, value, "named once")
        values[name] = unquote(value)
    if not values:
        return place, None
    rest = "&".join(others)
    rule = StepRule(**cast(Any, values))
    return (f"{path}?{rest}" if rest else path), rule
