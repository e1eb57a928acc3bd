"""Parts that benchmarks and evidence share: options, setting, figures of repeats, table, JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of every module that is run."""

    json: Path
    """File that the figures are written to."""


SomeOptions = TypeVar("SomeOptions", bound=Options)
Count: TypeAlias = dict[str, float]
"""A count as `value`, and as `ideal` the least there can be, where that is plain."""


def run(main: Callable[[SomeOptions], None], options: type[SomeOptions]) -> None:
    """Calls the `main` of the module that was started, with options from the command line."""
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else module.__name__
    main(tyro.cli(options, prog=f"python -m {name}", description=module.__doc__))


def setting(*modules: ModuleType, **sizes: Any) -> dict[str, Any]:
    """Returns what figures depend on: versions of modules, the machine, and sizes."""
    return {
        "versions": {module.__name__: str(module.__version__) for module in modules},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **sizes,
    }


def settings_of(options: Options) -> dict[str, Any]:
    """Returns the options of a module as sizes of its setting: paths as text, without its file."""
    sizes = {name: value for name, value in asdict(options).items() if name != "json"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in sizes.items()}


def over_repeats(values: Sequence[float], **more: Any) -> dict[str, Any]:
    """Returns a figure: the median over repeats with the extremes."""
    return {"ratio": median(values), "min": min(values), "max": max(values), **more}


def counted(value: float, ideal: float) -> Count:
    """Returns a figure: a count, and the least there can be."""
    return {"value": value, "ideal": ideal}


def over_seeds(values: Sequence[float], **more: Any) -> dict[str, Any]:
    """Returns a figure: the mean over seeds with the extremes."""
    return {"ratio": mean(values), "min": min(values), "max": max(values), **more}


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes figures as strict JSON, in a folder that is made where it is missing."""
    from panoply.files import write_json

    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)


def print_figures(
    figures: Mapping[str, Any],
    columns: Sequence[str] = ("ratio", "min", "max", "ideal"),
    notes: Mapping[str, str] | None = None,
) -> None:
    """Prints those figures that have the first of the columns, each with its note."""
    table = Table("figure", *columns, "")
    for name, figure in figures.items():
        if isinstance(figure, Mapping) and columns[0] in figure:
            cells = [_cell(figure.get(column)) for column in columns]  # pyright: ignore[reportUnknownMemberType]
            table.add_row(name, *cells, (notes or {}).get(name, ""))
    Console().print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:,.3f}"
        case _:
            return str(value)
