"""The numbers of a run that a tracker draws: few, under names that the tracker takes.

A number is named by its path in `metrics.json`, as in `pairs/gate/macro/accuracy`; trackers make a
group of what stands before a slash.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

from panoply.report.section import Metrics, is_defined

MOST_HEADLINES = 40
HEADLINES = (
    "pairs/gate/macro/accuracy_length_balanced",
    "pairs/score/macro/accuracy_length_balanced",
    "pairs/gate/*",
    "pairs/score/*",
    "strategies/*/after",
    "strategies/*/gain",
    "means/*/all/accuracy_length_balanced",
    "board/scorers/*/values/*",
    "board/scorers/*/missing",
    "board/scorers/*/cost",
    "board/paired/*/value",
    "board/controls/*/values/*",
    "select_loss/*",
    "calibrated/rows/*/accuracy",
    "merged/gains/*/value",
    "merged/share",
    "pairs/*/macro/accuracy_length_balanced",
    "comparisons/*/value",
    "differences/*/value",
    "best_of_n/*/value",
    "rescored/choices/*/reward",
    "rescored/tau/recorded/*/value",
    "rescored/scorers/*/missing",
    "rescored/scorers/*/cost",
    "rescored/scorers/*/flat_share",
    "audit/suspect",
    "audit/proposed/*",
    "audit/planted/rows/votes/*",
    "audit/effect/differences/*/value",
    "audit/voters/*/accuracy",
    "audit/voters/*/cost",
    "planted/*",
    "debias/heldout/max_abs_spearman",
    "training/*/last_loss",
    "training/*/seconds",
    "data/*/rows",
    "num_pairs",
    "num_prompts",
    "objectives/*/spearman",
)
"""Patterns of paths, the most important first. A star at the end stands for one part of a path."""
LONGEST_NAME = 250
"""Characters that MLflow takes."""


def flat(values: Mapping[str, Any], separator: str = "/") -> Iterator[tuple[str, Any]]:
    """Yields nested values under the paths of their names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            for path, inner in flat(value, separator):  # pyright: ignore[reportUnknownArgumentType]
                yield f"{name}{separator}{path}", inner
        else:
            yield name, value


def finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers among nested values, by path."""
    return {path: float(value) for path, value in flat(values) if is_defined(value)}


def headline(metrics: Metrics) -> dict[str, float]:
    """Returns at most MOST_HEADLINES numbers of `metrics.json`, the most important ones, by path.

    Few numbers are all returned.
    """
    numbers = finite_numbers(metrics)
    if len(numbers) <= MOST_HEADLINES:
        return numbers
    chosen: dict[str, float] = {}
    for pattern in HEADLINES:
        for path, value in numbers.items():
            is_deeper = pattern.endswith("/*") and path.count("/") > pattern.count("/")
            if fnmatchcase(path, pattern) and not is_deeper:
                chosen.setdefault(path, value)
    return dict(list(chosen.items())[:MOST_HEADLINES])


def tracker_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns for each path a name that MLflow accepts, another one for each.

    Characters that it does not take become underscores. Where two paths would then have the same
    name, each ends with a hash of its path. Case is no difference to some databases.
    """
    plain = {path: _accepted(path) for path in paths}
    counts = Counter(name.casefold() for name in plain.values())
    names: dict[str, str] = {}
    for path, name in plain.items():
        if counts[name.casefold()] > 1:
            digest = blake2b(path.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
            name = f"{name[: LONGEST_NAME - 9]}-{digest}"
        names[path] = name
    return names


def _accepted(path: str) -> str:
    """Returns a path without what MLflow takes for no name, or for a relative path."""
    plain = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in path)[:LONGEST_NAME]
    if posixpath.normpath(plain) == plain and not plain.startswith((".", "/")):
        return plain
    return plain.replace("/", "_").strip(".") or "_"
