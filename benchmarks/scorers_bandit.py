"""A served bandit beside its arm served alone: `python -m benchmarks.scorers_bandit --json FILE`.

Both are served by `jobs.serve` on this machine, the arm a function that takes no time, and asked
in turn over HTTP by one client, one prompt with two responses at a time. The log is on the local
disk; each decision is written and synced before it is answered.

`overhead_ms`: p50 of the bandit less p50 of the arm, the median over repeats. Bar: at most 10.
`bandit_ms`, `arm_ms`, `feedback_ms`: p50 of a request (`p99` beside). `clients_ms`: p50 with 16
clients at once, whose decisions share records. `restart_seconds`: the time from the death of the
bandit's process to the next answer. `record_bytes`: size of the log over its decisions.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import ray

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures

FILE = """\
arms:
  length: {where: "function:panoply.serve.verifiers:length"}
  number: {where: "function:panoply.serve.verifiers:last_number"}
bandit: {kind: thompson}
context: {kind: words}
log: log
"""
CLIENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    requests: int = 200
    """Requests of each kind in a repeat."""
    repeats: int = 5
    """Repeats, in each of which the arm and the bandit are asked in turn."""


@contextmanager
def server(folder: Path) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """Yields the address and the process of a server of the arm and the bandit."""
    (folder / "bandit.yaml").write_text(FILE)
    arm = "function:panoply.serve.verifiers:length"
    models = [f"arm={arm}", f"router=bandit:{folder}/bandit.yaml"]
    command = [sys.executable, "-m", "jobs.serve", "models", "--port", "0", "--models", *models]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "500"}
        )
        try:
            yield address(folder / "out", process), process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def address(out: Path, process: subprocess.Popen[bytes]) -> str:
    """Returns the address that a server prints.

    Raises:
        RuntimeError: it ended, or printed none in time.
    """
    ends = time.monotonic() + 180
    while time.monotonic() < ends and process.poll() is None:
        if match := re.search(r"Serving at (http://\S+)/ \(UI\)", out.read_text()):
            return match[1]
        time.sleep(0.2)
    raise RuntimeError(f"no server: {out.read_text()[-2000:]}")


class Asker:
    """Asks a server, each prompt another one."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.Client(base_url=url, timeout=60)
        self.num = 0

    def ask(self, model: str) -> tuple[float, str]:
        """Returns the milliseconds of an answer, and the id of its decision."""
        self.num += 1
        prompt = [{"role": "user", "content": f"Question {id(self)} {self.num}: what is it?"}]
        items = [{"prompt": prompt, "responses": ["It is 4.", "I do not know."]}]
        begun = time.perf_counter()
        answer = self.http.post("/v1/rewards", json={"models": [model], "items": items})
        passed = 1000 * (time.perf_counter() - begun)
        answer.raise_for_status()
        return passed, answer.json()["results"][0]["items"][0][0].get("decision", "")

    def tell(self, decision: str) -> float:
        """Returns the milliseconds in which an outcome was counted."""
        outcomes = [{"decision": decision, "reward": 0.5}]
        begun = time.perf_counter()
        answer = self.http.post("/models/router/v1/feedback", json={"outcomes": outcomes})
        passed = 1000 * (time.perf_counter() - begun)
        assert answer.json()["outcomes"][0]["status"] == "counted", answer.text
        return passed


def restart_seconds(process: subprocess.Popen[bytes], asker: Asker) -> float:
    """Returns the time from the death of the bandit's process to the next answer."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "ServeReplica:panoply-model-router:" in " ".join(child.cmdline()):
            child.kill()
    begun = time.perf_counter()
    asker.ask("router")
    return time.perf_counter() - begun


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """Returns p50 and p99."""
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def together(url: str, num: int, call: Callable[[Asker], float]) -> list[float]:
    """Returns the times of calls by several clients at once."""

    def calls(asker: Asker) -> list[float]:
        return [call(asker) for _ in range(num // CLIENTS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        rows = pool.map(calls, [Asker(url) for _ in range(CLIENTS)])
        times: list[float] = []
        for row in rows:
            times += row
        return times


def main(options: Options) -> None:
    """Asks both in turn, and prints and writes the figures."""
    by_kind: dict[str, list[float]] = {"arm": [], "bandit": [], "feedback": [], "clients": []}
    overheads: list[float] = []
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (url, process):
        asker = Asker(url)
        for _ in range(options.requests // 4):
            asker.ask("arm")
            asker.ask("router")
        for _ in range(options.repeats):
            pairs = [(asker.ask("arm")[0], *asker.ask("router")) for _ in range(options.requests)]
            arm, bandit, decisions = (list(column) for column in zip(*pairs, strict=True))
            by_kind["arm"] += arm
            by_kind["bandit"] += bandit
            by_kind["feedback"] += [asker.tell(decision) for decision in decisions]
            overheads.append(statistics.median(bandit) - statistics.median(arm))
        num = options.requests * options.repeats
        by_kind["clients"] = together(url, num, lambda other: other.ask("router")[0])
        log = Path(folder) / "log"
        sizes = [path.stat().st_size for path in log.glob("*.parquet")]
        num_records = len(sizes)
        restart = restart_seconds(process, asker)
    figures: dict[str, Any] = {"overhead_ms": over_repeats(overheads)}
    for kind, times in by_kind.items():
        middle, high = percentiles(times)
        figures[f"{kind}_ms"] = {"ratio": middle, "p99": high}
    figures["restart_seconds"] = {"ratio": restart, "records": num_records}
    figures["record_bytes"] = {"ratio": sum(sizes) / num_records}
    figures["setting"] = setting(ray, requests=options.requests, repeats=options.repeats)
    print_figures(figures, ("ratio", "min", "max", "p99", "records"))
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
