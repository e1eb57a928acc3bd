"""The first hour of a new user, in counts that do not depend on the machine.

`python -m benchmarks.first_hour --json FILE` starts every command with a file that is missing;
`--demo` also runs the two commands of `make demo`, which takes half an hour on two cores.

modules: modules of Python that are loaded when the missing file is told.
heavy: of these, packages that take seconds to import.
quiet seconds: longest time without a line in a log file.
noise: lines of other programs in the log: those of standard error, and Ray's and MLflow's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import tyro

from benchmarks.harness import Options, print_figures, run, setting, write_figures

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "ray", "mlflow", "matplotlib")
TYPOS = {
    "armorm": "armorm files --ratings no.parquet --pairs no.parquet",
    "preference": "preference pairs --pairs no.parquet",
    "tune_more": "tune_more pairs --pairs no.parquet",
    "laser": "laser files --arms.models a=b/c --prompts.file no.jsonl",
    "best_of_n": "best_of_n files --arms.models a=b/c --prompts.file no.jsonl",
    "evaluate": "evaluate owner/name --pairs no.parquet",
    "cross_eval": "cross_eval owner/name --pairs no.parquet",
}
DEMO = ("armorm embedded --out runs/embedded", "laser demo --out runs/laser-demo")
"""The commands of `make demo`; the second one serves the model of the first."""
NOT_OURS = re.compile(
    r"\(raylet\)|\(pid=|\b(INFO|WARNING)\b.*\b(mlflow|ray|alembic)\b|FutureWarning"
)
COUNT = """
import runpy, sys
sys.argv = {words!r}
try: runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit: pass
print(len(sys.modules), sum(name in sys.modules for name in {heavy!r}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstHourOptions(Options):
    """Options of this benchmark."""

    demo: bool = False
    """Run what `make demo` runs."""


def modules_before_a_typo(command: str, folder: str) -> dict[str, int]:
    """Returns how many modules, and heavy ones, are loaded when a missing file is told."""
    job, *flags = command.split()
    code = COUNT.format(words=[f"jobs.{job}", *flags], heavy=HEAVY)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    if "does not exist" not in done.stdout:
        raise RuntimeError(f"{command!r} did not tell of its missing file: {done.stdout}")
    modules, heavy = map(int, done.stdout.split()[-2:])
    return {"modules": modules, "heavy": heavy}


def run_demo(folder: str) -> dict[str, dict[str, Any]]:
    """Returns what the log and the folder of the demo look like."""
    quiet, noise, lines = 0.0, 0, 0
    for command in DEMO:
        job, *flags = command.split()
        words = [sys.executable, "-u", "-m", f"jobs.{job}", *flags]
        errors = Path(folder) / f"{job}.err"
        with errors.open("w") as file:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
            last = time.monotonic()
            for line in process.stdout or ():
                now = time.monotonic()
                quiet, last, lines = max(quiet, now - last), now, lines + 1
                noise += bool(NOT_OURS.search(line))
        told = errors.read_text()
        if process.wait():
            raise RuntimeError(f"{command!r} ended with {process.returncode}: {told[-2000:]}")
        noise += len(told.splitlines())
    # A file with several names takes its space once: the tracker's copy of a model is such a name.
    files = [path.lstat() for path in Path(folder).rglob("*")]
    left = sum({file.st_ino: file.st_blocks * 512 for file in files}.values())
    return {
        "demo: longest silence in a log, s": {"value": quiet, "ideal": 60},
        "demo: lines that are not ours": {"value": noise, "ideal": 0},
        "demo: lines": {"value": lines},
        "demo: GB left": {"value": left / 1e9, "ideal": 0.8},
    }


def main(options: FirstHourOptions) -> None:
    """Measures, prints and writes the figures."""
    figures: dict[str, Any] = {"setting": setting(pyarrow, tyro)}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in TYPOS.items():
            counts = modules_before_a_typo(command, folder)
            figures[f"{name}: heavy packages"] = {"value": counts["heavy"], "ideal": 0}
            figures[f"{name}: modules"] = {"value": counts["modules"]}
        if options.demo:
            figures |= run_demo(folder)
    print_figures(figures, columns=("value", "ideal"))
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, FirstHourOptions)
