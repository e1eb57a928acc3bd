"""The first day on a GPU: `python -m benchmarks.gpu_first_day --json FILE`.

One command of at most 8 minutes on one H100 or H200 that shows whether all paths are exact there,
and what they give: models of .6B and 8B with random weights, so that nothing is downloaded. How to
read its table is in `docs/gpu.md`. Each part runs in a process of its own and has a time to end in.
A part that fails is reported and the others go on; then, and where a figure is beyond its bound,
the exit status is 1. `--tiny` runs on a CPU what can run there, on a tiny model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures

SECONDS = {"exactness": 140, "scoring": 135, "training": 110, "serving": 85}
"""Time of each part, in the order in which they run: below 8 minutes together."""
COLUMNS = ("value", "bound", "ideal", "seconds", "their_seconds", "tokens_per_second", "gibibytes")
LAST_LINES = 3
"""Lines of an error that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is run."""

    tiny: bool = False
    """Runs on a CPU, on a tiny model: shows that the command works, and no speed."""
    parts: tuple[str, ...] = tuple(SECONDS)
    """Parts that are run."""

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - SECONDS.keys():
            raise ValueError(f"`parts` has {sorted(unknown)}: allowed are {list(SECONDS)}")


def main(options: Options) -> None:
    """Runs the parts, prints a table, and exits with 1 where something is wrong."""
    figures: dict[str, Any] = {"setting": about(options)}
    for part in options.parts:
        figures |= run_part_apart(part, tiny=options.tiny)
        write_figures(options.json, figures)
    print_table(figures)
    if wrong := troubles(figures):
        Console(stderr=True).print("\n".join(escape(line) for line in wrong))
        sys.exit(1)


def run_part_apart(part: str, *, tiny: bool) -> dict[str, Any]:
    """Returns the figures of a part, those before an error too, and its time or its error."""
    start, error = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps({"part": part, "tiny": tiny}))
        command = [sys.executable, "-m", "benchmarks.gpu_parts", str(job)]
        # Tiny parts show that the command works, on machines of any load.
        limit = None if tiny else SECONDS[part]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=limit
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
                error = "\n".join(lines[-LAST_LINES:])
        except subprocess.TimeoutExpired:
            error = f"took more than {limit} s and was ended"
        file = job.with_name("figures.json")
        figures: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    spent: dict[str, Any] = {"value": time.perf_counter() - start, "unit": "s"}
    return figures | {f"part_{part}": spent | ({"error": error} if error else {})}


def troubles(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each part that failed and for each figure beyond its bound."""
    lines: list[str] = []
    for name, figure in figures.items():
        if "error" in figure:
            lines.append(f"{name}: {figure['error']}")
        elif not figure.get("holds", True):
            lines.append(f"{name}: {figure['value']:.3g} is beyond {figure['bound']:.3g}")
    return lines


def print_table(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints every figure."""
    table = Table("figure", *COLUMNS, "")
    for name, figure in figures.items():
        if "value" in figure:
            numbers = [figure.get(column) for column in COLUMNS]
            cells = ["" if x is None else f"{x:,.3g}" for x in numbers]
            cells[0] += str(figure["unit"])
            state = "failed" if "error" in figure else "" if figure.get("holds", True) else "beyond"
            table.add_row(name, *cells, state)
    Console(width=150).print(table)


def about(options: Options) -> dict[str, Any]:
    """Returns versions, the GPU and the options."""
    import transformers

    # Looked up apart: a process that has touched the GPU would hold a part of its memory.
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    sizes = {"tiny": options.tiny, "parts": list(options.parts), "cuda": torch.version.cuda}
    return setting(torch, transformers, gpu=done.stdout.strip() or None, **sizes)


if __name__ == "__main__":
    run(main, Options)
