"""Fitted numbers in a composite's file: the file's own text stays as it is, and they follow it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import yaml

from panoply.config.composite import CompositeConfig
from panoply.config.composite_fit import CompositeFit
from panoply.config.yaml_lines import read_settings
from panoply.files import write_whole

HEADING = "# By jobs.calibrate; another run replaces what follows."
BLOCK = re.compile(rf"^({re.escape(HEADING)}\n)?fitted:.*(\n([ #].*)?)*", re.MULTILINE)
"""The fitted numbers: their key, and all lines behind it that are indented or empty."""


def text_with_fit(text: str, fitted: CompositeFit) -> str:
    """Returns the text of a file with these fitted numbers in place of others."""
    kept = BLOCK.sub("", text).rstrip("\n")
    block = yaml.safe_dump({"fitted": _plain(asdict(fitted))}, sort_keys=False, width=100)
    return f"{kept}\n\n{HEADING}\n{block}"


def write_fit(source: Path, target: Path, fitted: CompositeFit) -> None:
    """Writes a composite's file with fitted numbers, whole or not at all.

    Args:
        source: file of the composite.
        target: file that is written; it may be the same.
        fitted: numbers.
    """
    write_whole(target, text_with_fit(source.read_text(encoding="utf-8"), fitted))
    read_settings(target, CompositeConfig)


def _plain(value: Any) -> Any:
    """Returns settings as YAML has them: lists, floats in six digits, nothing that is None."""
    match value:
        case dict():
            named = cast(dict[str, Any], value)
            return {name: _plain(number) for name, number in named.items() if number is not None}
        case tuple() | list():
            return [_plain(item) for item in cast(Sequence[Any], value)]
        case float():
            return float(f"{value:.6g}")
        case _:
            return value
