"""A benchmark per release: `python -m benchmarks.release [--out benchmarks/releases]`.

Runs the benchmarks that fit into twenty minutes on two cores, each in a process of its own with a
time bound, and writes `OUT/COMMIT.json`. Only ratios are kept, with their extremes over repeats,
since seconds of two machines say nothing about two commits; and counts, which no machine moves
(`benchmarks.counts`). What failed or ran out of its time is missing, with the reason.

Sizes are far smaller than those of `RESULTS.md`, whose bars stand beside: it is the course of a
ratio over commits that says something (`benchmarks.release_page`). Left out are benchmarks that
take longer at any size that says something: `more`, `tune`, `laser`, `scorers`, `boards`, `faults`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import psutil
import tyro

from benchmarks.harness import write_figures

Figures: TypeAlias = Mapping[str, Any]
"""What a benchmark writes, or a part of it."""
GRACE = 10.0
"""Seconds that a part has to take down what it started, before it is killed."""
LONGEST = 300
"""Characters of a reason at most."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio is to reach; without numbers there is no bar."""

    at_least: float | None = None
    at_most: float | None = None
    of_ideal: bool = False
    """Whether the bar is a share of the figure's ideal."""

    def limits(self, figure: Mapping[str, float]) -> dict[str, float]:
        """Returns the bar in the units of a figure's ratio."""
        factor = figure["ideal"] if self.of_ideal else 1.0
        limits = {"at_least": self.at_least, "at_most": self.at_most}
        return {name: factor * value for name, value in limits.items() if value is not None}


NO_BAR = Bar()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A benchmark with sizes that fit."""

    name: str
    module: str
    flags: str = ""
    seconds: float
    """Time for all of its runs, with `GRACE`."""
    num_runs: int = 1
    """Runs, of a benchmark that repeats nothing itself."""
    needs_data: bool = False
    """Whether it reads the folder of real texts, by `--data`."""
    bars: Mapping[str, Bar] = field(default_factory=dict[str, Bar])
    """Figures that are kept, with their bars; of a part without any, all counts are kept."""


PARTS = (
    Part(name="counts", module="benchmarks.counts", seconds=40),
    Part(
        name="trees",
        module="benchmarks.trees",
        flags="--parts samples pairs --pairs 4 --num-layers 6 --dtypes float32 --repeats 3",
        seconds=250,
        needs_data=True,
        bars={
            "n16_vs_sorted": Bar(at_least=4.8),
            "n16_vs_one": NO_BAR,
            "n16_vs_unpacked": NO_BAR,
            "pairs_vs_sorted": Bar(at_least=0.85, of_ideal=True),
            "pairs_vs_unpacked": NO_BAR,
            "pairs_hh_helpful_vs_sorted": NO_BAR,
            "pairs_webgpt_vs_sorted": NO_BAR,
            "pairs_ultrafeedback_mini_vs_sorted": NO_BAR,
        },
    ),
    Part(
        name="training",
        module="benchmarks.trees",
        flags="--parts training --train-pairs 8 --num-layers 4 --dtypes float32 --repeats 2",
        seconds=200,
        needs_data=True,
        bars={
            "train_vs_trl": Bar(at_least=2.0),
            "train_vs_trl_matched": Bar(at_least=1.35),
            "train_memory_vs_trl_matched": Bar(at_most=0.75),
        },
    ),
    Part(
        name="serve",
        module="benchmarks.serve",
        flags="--pairs 8 --articles 2 --batches 2 --batch-characters 150 --clients 16 "
        "--num-layers 8 --repeats 2 --soak-minutes 0 --work runs/release/serve",
        seconds=350,
        needs_data=True,
        bars={
            "c16_pairs_vs_plain": Bar(at_least=1.3),
            "c16_n16_vs_plain": Bar(at_least=3.0),
            "c16_distinct_vs_plain": NO_BAR,
            "c8_batch_vs_plain": Bar(at_least=1.0),
            "c8_batch_vs_singles": Bar(at_least=1.0),
            "served_vs_in_process": Bar(at_most=1.25),
        },
    ),
    Part(
        name="embed",
        module="benchmarks.embed",
        flags="--parts forwards --depth 0.2 --prompts 24 --ratings-per-source 12 --repeats 3",
        seconds=160,
        needs_data=True,
        bars={"embed_vs_single": NO_BAR, "embed_vs_sorted": NO_BAR},
    ),
    Part(
        name="ingest",
        module="benchmarks.ingest",
        flags="--rows 10000 --rendered-rows 4000",
        seconds=100,
        num_runs=2,
        bars={"speed (parquet)": Bar(at_least=1.0), "speed (jsonl)": Bar(at_least=1.0)},
    ),
    Part(
        name="bandit",
        module="benchmarks.bandit",
        flags="--repeats 3",
        seconds=60,
        bars={
            "bandit_vs_inversion": Bar(at_least=50.0),
            "bandit_vs_inversion_unprojected": NO_BAR,
        },
    ),
    Part(
        name="judge_cache",
        module="benchmarks.judge_cache",
        flags="--responses 800",
        seconds=40,
        num_runs=3,
        bars={"cache_vs_server": NO_BAR, "same": Bar(at_least=1.0)},
    ),
)
"""All that is measured, in this order, with sizes, time bounds and bars."""


class MissingPart(Exception):
    """A part has no figures; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOptions:
    """What is measured, and where it is written."""

    out: Path = Path("benchmarks/releases")
    """Folder of the releases' files."""
    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet` and `ratings/*.parquet`."""
    work: Path = Path("runs/release")
    """Folder of the parts' figures and logs."""


def main(options: ReleaseOptions) -> None:
    """Measures the commit that is checked out, and writes its file after every part.

    Raises:
        RuntimeError: files differ from the commit.
    """
    parts: dict[str, Any] = {}
    release = {**checked_out(ROOT), "machine": machine(), "parts": parts}
    file = options.out / f"{release['commit']}.json"
    options.work.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        print(f"{part.name}: at most {part.seconds:.0f} s", flush=True)
        parts[part.name] = measured(part, options.work, options.data)
        if missing := parts[part.name].get("missing"):
            print(f"{part.name} is missing: {missing}", flush=True)
        write_figures(file, release)
    print(f"wrote {file}")


def checked_out(folder: Path) -> dict[str, str]:
    """Returns the commit that a folder has checked out: its hash, date and subject.

    Raises:
        RuntimeError: files differ from the commit, which what is measured would be taken for.
    """
    if changed := git(folder, "status", "--porcelain", "--untracked-files=no"):
        raise RuntimeError(f"commit first, or stash: what is measured is a commit, and\n{changed}")
    commit, date, subject = git(folder, "log", "-1", "--format=%H%n%cI%n%s").split("\n", 2)
    return {"commit": commit, "date": date, "subject": subject}


def git(folder: Path, *words: str) -> str:
    """Returns what git prints for a folder, without white space at its ends."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Returns what ratios may depend on: the processor, its cores, and torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "cores": os.cpu_count(),
        "torch": version("torch"),
    }


def measured(part: Part, work: Path, data: Path) -> dict[str, Any]:
    """Returns what is kept of a part: the load before it, and its figures or why there are none."""
    load = os.getloadavg()[0]
    ends = time.monotonic() + part.seconds
    try:
        runs = [run_once(part, work, data, ends) for _ in range(part.num_runs)]
        figures = ratios(part.bars, runs) if part.bars else values(runs[0])
    except MissingPart as missing:
        return {"load": load, "missing": str(missing)}
    return {"load": load, "figures": figures}


def run_once(part: Part, work: Path, data: Path, ends: float) -> Figures:
    """Runs a part in a process of its own and returns what it wrote.

    Args:
        part: the benchmark.
        work: folder of its figures and log.
        data: folder of real texts.
        ends: time at which it must have ended, on the monotonic clock.

    Raises:
        MissingPart: it failed, or time was over.
    """
    figures, log = work / f"{part.name}.json", work / f"{part.name}.log"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", part.module, "--json", str(figures), *part.flags.split()]
    command += ["--data", str(data)] if part.needs_data else []
    with log.open("w") as output:
        # In a session of its own, so that Ctrl-C ends it here alone, with what it started.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(max(0.0, ends - GRACE - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise MissingPart(f"ran out of its {part.seconds:g} s") from None
        finally:
            stop(process)
    if code or not figures.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise MissingPart(f"ended with {code}: {lines[-1] if lines else ''}"[:LONGEST])
    return json.loads(figures.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process as Ctrl-C does, and kills after `GRACE` what is left of its session."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    for other in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(other.pid) == process.pid:
                other.kill()
    process.wait()


def ratios(bars: Mapping[str, Bar], runs: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Returns each figure over all runs: the median, the extremes, its ideal and its bar.

    Raises:
        MissingPart: a run lacks one of the figures.
    """
    kept: dict[str, dict[str, float]] = {}
    for name, bar in bars.items():
        by_run = [figures.get(name, {}) for figures in runs]
        needed = ("ratio", "ideal") if bar.of_ideal else ("ratio",)
        if not all(is_number(figure.get(key)) for figure in by_run for key in needed):
            raise MissingPart(f"wrote no {name!r}")
        figure: dict[str, float] = {"ratio": median(figure["ratio"] for figure in by_run)}
        if len(runs) > 1 or "min" in by_run[0]:
            figure["min"] = min(figure.get("min", figure["ratio"]) for figure in by_run)
            figure["max"] = max(figure.get("max", figure["ratio"]) for figure in by_run)
        if is_number(by_run[0].get("ideal")):
            figure["ideal"] = by_run[0]["ideal"]
        kept[name] = figure | bar.limits(figure)
    return kept


def values(figures: Figures) -> dict[str, Figures]:
    """Returns the counts among some figures, with their ideals."""
    return {name: figure for name, figure in figures.items() if "value" in figure}


def is_number(value: Any) -> bool:
    """Returns whether a figure is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


if __name__ == "__main__":
    main(tyro.cli(ReleaseOptions, prog="python -m benchmarks.release", description=__doc__))
