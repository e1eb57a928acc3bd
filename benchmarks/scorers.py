"""A composite beside its parts, and a judge's cache: `python -m benchmarks.scorers --json FILE`.

One real server has two reward models (SmolLM2-135M with random heads) and two functions, each under
its own name, and a composite of each two, whose parts the composite loads itself. All processes of
the server share one core, the clients have another. The same requests go to the two parts, named
together in each request, and to their composite: side by side, in turns, in one run. Every score of
a composite is compared with the sum of its parts' own.

`c1_models`, `c8_models`: time of the composite's requests over that of its parts', with 1 and 8
clients. Bar: at most 1.05. `c1_functions`, `c8_functions`: the same where the parts cost nothing,
so that all of it is overhead; `p50_ms` beside `parts_p50_ms` says what it comes to.
`judge_cache`: scores a second of CPU time from a judge's cache. Bar: at least 1,000.
`judge_cache_same`: share of them that are the same to the last bit (`benchmarks.judge_cache`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import harness, judge_cache
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures
from benchmarks.serve import saved_model

PARTS: Mapping[str, tuple[str, str]] = {
    "models": ("first", "second"),
    "functions": ("length", "lines"),
}
"""Names of the parts, by the name of their composite."""
COMPOSITE = """\
parts:
  {0}: {{where: "{2}"}}
  {1}: {{where: "{3}"}}
rule: {{kind: sum}}
scale: raw
"""
WORDS = [
    "the",
    "river",
    "carried",
    "a",
    "boat",
    "past",
    "our",
    "village",
    "while",
    "two",
    "old",
    "friends",
    "spoke",
    "of",
    "rain",
]
CLOSE = 1e-4
"""Largest difference between a composite's score and the sum of its parts', of scores near 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    work: Path = Path("runs/benchmark-scorers")
    """Folder of the models and of the server's log."""
    port: int = 8713
    requests: int = 16
    """Requests of each turn to the models, of two responses each."""
    function_requests: int = 400
    """Requests of each turn to the functions."""
    clients: tuple[int, ...] = (1, 8)
    """Clients at the same time."""
    repeats: int = 5
    """Turns of each side."""
    server_core: int = 0
    client_core: int = 1
    responses: int = 4000
    """Responses that the judge's cache has."""


@dataclass(frozen=True, slots=True)
class Passed:
    """One side's turn."""

    seconds: float
    latencies: list[float]
    scores: list[list[float]]
    """Sum of the scores of all scorers asked, by request and response."""


def main(options: Options) -> None:
    """Measures both, and prints and writes the figures."""
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {options.client_core})
    figures: dict[str, Any] = {"setting": about(options)}
    with served(options, work) as url:
        for composite, parts in PARTS.items():
            num = options.requests if composite == "models" else options.function_requests
            for num_clients in options.clients:
                name = f"c{num_clients}_{composite}"
                figures[name] = beside_parts(url, composite, parts, num, num_clients, options)
                print(f"{name}: {figures[name]['ratio']:.3f}", flush=True)
                write_figures(options.json, figures)
    cached = judge_cache.measured(options.responses, num_words=150)
    figures |= {"judge_cache": cached["cache"], "judge_cache_same": cached["same"]}
    write_figures(options.json, figures)
    print_figures(figures, ("ratio", "min", "max", "p50_ms", "parts_p50_ms"))


def wheres(work: Path) -> dict[str, str]:
    """Returns the WHERE of each scorer of the server by its name; models are made once."""
    places = {
        "first": str(saved_model(work / "a")),
        "second": str(saved_model(work / "b")),
        "length": "function:panoply.serve.verifiers:length",
        "lines": "function:panoply.serve.verifiers:lines",
    }
    for composite, parts in PARTS.items():
        file = work / f"{composite}.yaml"
        file.write_text(COMPOSITE.format(*parts, *(places[part] for part in parts)))
        places[composite] = f"combine:{file}"
    return places


@contextmanager
def served(options: Options, work: Path) -> Generator[str]:
    """Starts the server on its core, yields its address once it is ready, and stops it."""
    models = [f"{name}={where}" for name, where in wheres(work).items()]
    command = [
        *("taskset", "-c", str(options.server_core), sys.executable, "-m", "jobs.serve", "models"),
        *("--models", *models, "--port", str(options.port), "--gateway.timeout", "600"),
    ]
    url, environment = f"http://127.0.0.1:{options.port}", os.environ | {"OMP_NUM_THREADS": "1"}
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            ends = time.monotonic() + 600
            while not is_ready(url):
                assert process.poll() is None, f"the server ended: see {log.name}"
                assert time.monotonic() < ends, f"the server does not answer: see {log.name}"
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def is_ready(url: str) -> bool:
    """Returns whether a server has started all of its scorers."""
    try:
        states = httpx2.get(f"{url}/health", timeout=10).json()["models"].values()
    except (httpx2.TransportError, ValueError, KeyError):
        return False
    return set(states) == {"ready"}


def beside_parts(
    url: str,
    composite: str,
    parts: Sequence[str],
    num: int,
    num_clients: int,
    options: Options,
) -> dict[str, Any]:
    """Returns the time of a composite's requests over that of its parts', turn by turn."""
    items = make_items(num)
    asyncio.run(drive(url, (composite,), items[:2], 1))  # warms both up
    asyncio.run(drive(url, parts, items[:2], 1))
    ratios: list[float] = []
    latencies: dict[str, list[float]] = {"composite": [], "parts": []}
    for turn in range(options.repeats):
        sides = {"composite": (composite,), "parts": tuple(parts)}
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        passed = {side: asyncio.run(drive(url, sides[side], items, num_clients)) for side in order}
        check_same(passed["composite"], passed["parts"])
        ratios.append(passed["composite"].seconds / passed["parts"].seconds)
        for side, one_turn in passed.items():
            latencies[side] += one_turn.latencies
    return over_repeats(
        ratios,
        p50_ms=1000 * statistics.median(latencies["composite"]),
        parts_p50_ms=1000 * statistics.median(latencies["parts"]),
        requests=num,
    )


def make_items(num: int) -> list[dict[str, Any]]:
    """Returns prompts with two responses each, no two of the same prompt."""
    rng = random.Random(0)

    def sentence(num_words: int) -> str:
        return " ".join(rng.choices(WORDS, k=num_words))

    items: list[dict[str, Any]] = []
    for number in range(num):
        prompt = [{"role": "user", "content": f"{number}: {sentence(20)}?"}]
        items.append({"prompt": prompt, "responses": [sentence(12), sentence(16)]})
    return items


async def drive(
    url: str, models: Sequence[str], items: Sequence[Mapping[str, Any]], num_clients: int
) -> Passed:
    """Sends a request for each item in order, as many at once as there are clients."""
    left = iter(enumerate(items))
    latencies: list[float] = []
    scores: list[list[float]] = [[] for _ in items]

    async def client(http: httpx2.AsyncClient) -> None:
        for number, item in left:
            begun = time.monotonic()
            body = {"models": list(models), "items": [item]}
            answer = await http.post(f"{url}/v1/rewards", json=body)
            latencies.append(time.monotonic() - begun)
            assert answer.status_code == 200, answer.text
            rows = [result["items"][0] for result in answer.json()["results"]]
            for entries in zip(*rows, strict=True):
                scores[number].append(sum(entry["score"] for entry in entries))

    limits = httpx2.Limits(max_connections=num_clients)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:
        begun = time.monotonic()
        await asyncio.gather(*(client(http) for _ in range(num_clients)))
        seconds = time.monotonic() - begun
    return Passed(seconds, latencies, scores)


def check_same(composite: Passed, parts: Passed) -> None:
    """Checks that a composite's scores are the sums of its parts' own."""
    for row, sums in zip(composite.scores, parts.scores, strict=True):
        for score, expected in zip(row, sums, strict=True):
            difference = abs(score - expected) / max(1.0, abs(expected))
            assert difference < CLOSE, f"a composite's score is {difference:.1e} off"


def about(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import fastapi
    import ray
    import torch

    return setting(
        *(torch, ray, fastapi),
        model="SmolLM2-135M, all layers, random head",
        threads=1,
        dtype="float32",
        server_core=options.server_core,
        client_core=options.client_core,
        repeats=options.repeats,
    )


if __name__ == "__main__":
    run(main, Options)
