"""Opening of a composite's file: its settings, its parts, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from panoply.config.composite import CompositeConfig
from panoply.config.steps import split_off_rule
from panoply.config.yaml_lines import read_settings, with_line
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.scorers.where import Scorer

PREFIX = "combine:"
OF_FILES = ("replay", "judge", "combine", "bandit")
"""Kinds of WHERE that name a file."""


def read_composite(file: Path, *, is_fitted: bool = True) -> CompositeConfig:
    """Returns the settings of a composite, its parts' paths looked up from the file's folder.

    Args:
        file: of settings.
        is_fitted: whether what has to be fitted must be there; calibration does without.

    Raises:
        ValueError, OSError: "FILE:LINE: " and what is wrong with it or a composite that it names.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}, which `combine:` names")
    _check_tree(file, (), is_fitted)
    return read_settings(file, CompositeConfig)


def open_composite(file: Path, open_part: Callable[[str, str], Scorer]) -> CompositeScorer:
    """Returns the scorer of a composite with its parts opened.

    Args:
        file: of settings.
        open_part: opens a part, by its name and WHERE.

    Raises:
        ValueError, OSError: as `read_composite`; or a part cannot be opened.
    """
    config = read_composite(file)
    parts = open_named(file, "parts", part_places(file, config), open_part)
    return CompositeScorer(config, parts)


def open_named(
    file: Path, group: str, places: Mapping[str, str], open_scorer: Callable[[str, str], Scorer]
) -> dict[str, Scorer]:
    """Returns the scorers that a file names, opened.

    Args:
        file: of settings.
        group: setting that holds them.
        places: their WHERE by name.
        open_scorer: opens one, by its name and WHERE.

    Raises:
        ValueError: "FILE:LINE: " and why one cannot be opened.
    """
    scorers: dict[str, Scorer] = {}
    for name, where in places.items():
        with with_line(file):
            try:
                scorers[name] = open_scorer(name, where)
            except (ValueError, OSError) as error:
                raise ValueError(f"`{group}.{name}.where`: {error}") from error
    return scorers


def part_places(file: Path, config: CompositeConfig) -> dict[str, str]:
    """Returns the WHERE of each part, with paths looked up from the folder of the file."""
    return {name: beside(file, part.where) for name, part in config.parts.items()}


def beside(file: Path, where: str) -> str:
    """Returns a WHERE whose path, where it has one, is looked up from the folder of a file."""
    kind, colon, rest = where.partition(":")
    if colon and kind in OF_FILES:
        return f"{kind}:{file.parent / rest}"
    if colon and kind == "function":
        path, _, name = rest.rpartition(":")
        return f"function:{file.parent / path}:{name}" if path.endswith(".py") else where
    model, rule = split_off_rule(where)
    folder = file.parent / model
    if ":" in model or not folder.is_dir():
        return where
    return f"{folder}{rule.query if rule else ''}"


def _check_tree(file: Path, above: Sequence[Path], is_fitted: bool) -> None:
    """Checks a composite and all composites that it is made of.

    Raises:
        ValueError, OSError: one of them is wrong, or is a part of itself.
    """
    config = read_settings(file, CompositeConfig)
    if is_fitted or above:
        with with_line(file):
            config.check_fitted()
    chain = [*above, file.resolve()]
    for name, where in part_places(file, config).items():
        if not where.startswith(PREFIX):
            continue
        inner = Path(where.removeprefix(PREFIX))
        with with_line(file):
            if inner.resolve() in chain:
                names = " -> ".join(path.name for path in [*chain, inner])
                raise ValueError(f"`parts.{name}.where` makes a circle of composites: {names}")
            if not inner.is_file():
                raise ValueError(f"`parts.{name}.where`: there is no file {str(inner)!r}")
        _check_tree(inner, chain, is_fitted)
