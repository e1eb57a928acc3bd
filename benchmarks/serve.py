"""The reward server beside a plain one and beside no server: `python -m benchmarks.serve --json F`.

OpenRLHF requests of one sample, as its trainer sends them, and of 64. The server's processes share
one core, the clients have another; both servers get the same requests, one after the other, in one
run.

`c64_pairs_vs_plain`: chosen and rejected of one dialogue. `c64_n16_vs_plain`: 16 summaries of one
article. `c64_distinct_vs_plain`: no two requests share a prompt, so nothing can be gained by it.
The ideal beside each is the ratio of tokens. `c8_batch_vs_plain`: requests of 64 texts with 64
distinct prompts, 8 clients; `c8_batch_vs_singles`: the time of the same texts sent one at a time to
our server, over that of the batches. `served_vs_in_process`: time of the n = 16 requests
over that of the same scores without a server, on the same core. `c1_distinct_p50_vs_plain` and its
like, with a single client: p50 of our server over that of the plain one. `soak`: full load for
minutes.
`cpu`: share of each kind of process in the CPU time of a server while it was measured, in the last
repeat.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures

Kind = Literal["panoply", "plain"]
PORTS: dict[Kind, int] = {"panoply": 8711, "plain": 8712}
BATCH_CLIENTS = 8
BATCH = 64
"""Texts of a batch request."""
OF_EACH = 12
"""Requests of each of several clients at most, so that few clients do not take for ever."""
OF_ONE = 32
"""Requests of a single client at most."""
CLOSE = 1e-3
"""Largest relative difference between a served score and one in-process, of scores near 1."""


PROCESSES = {
    "plain_server": "the plain server",
    "RewardModel": "the model",
    "Gateway": "the gateway",
    "ProxyActor": "Serve's proxy",
    "ServeController": "Serve's controller",
    "jobs.serve": "the driver",
    "gcs_server": "Ray's GCS",
    "raylet": "Ray's raylet and agents",
}
"""Kinds of processes of a server, by a part of their command lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet` and `ratings/summeval.parquet`."""
    work: Path = Path("runs/benchmark-serve")
    """Folder of the model."""
    num_layers: int = 0
    """Cuts the model; 0 keeps all layers."""
    pairs: int = 96
    """Dialogues of the pairs' requests, and of the distinct ones."""
    articles: int = 12
    """Of the n = 16 requests."""
    batch_characters: int = 700
    """Longest dialogue of a batch request, so that 512 of them are minutes on one core."""
    plain_rows: int = 8
    """Texts of a padded batch of the plain server; 64 pads a whole request, as OpenRLHF's does."""
    batches: int = 8
    """Requests of 64 texts."""
    clients: tuple[int, ...] = (1, 8, 64)
    """At the same time; the ratios are those of the last."""
    repeats: int = 2
    """Times each server is started and measured."""
    soak_minutes: float = 5.0
    server_core: int = 0
    client_core: int = 1


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and what comes back when all is well."""

    prompt: str
    query: str
    score: float


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one kind."""

    asks: list[Ask]
    ideal: float
    """Tokens of separate sequences over those of trees."""
    alone: float
    """Seconds that the scores took in-process."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What one server did with a load."""

    seconds: float
    latencies: list[float]
    worst: float
    """Largest relative difference of a score."""

    def told(self) -> dict[str, float]:
        """Returns the figures."""
        # Of a single request every quantile is its latency.
        latencies = self.latencies if len(self.latencies) > 1 else 2 * self.latencies
        cuts = statistics.quantiles(latencies, n=100)
        return {
            "requests": len(self.latencies),
            "requests_per_second": len(self.latencies) / self.seconds,
            "p50_ms": 1000 * cuts[49],
            "p99_ms": 1000 * cuts[98],
            "worst_difference": self.worst,
        }


def main(options: Options) -> None:
    """Runs the benchmark and prints a table."""
    folder = saved_model(options.work, num_layers=options.num_layers)
    loads = make_loads(options, folder)
    figures: dict[str, Any] = {"setting": about(options, loads)}
    runs: dict[Kind, list[dict[tuple[str, int], Passed]]] = {"panoply": [], "plain": []}
    kinds: tuple[Kind, ...] = ("panoply", "plain")
    spent: dict[Kind, dict[str, float]] = {}
    for repeat in range(options.repeats):
        for kind in kinds if repeat % 2 == 0 else kinds[::-1]:
            with server(kind, folder, options) as process:
                print(f"{kind} server, time {repeat + 1}", flush=True)
                before = cpu_seconds(process.pid)
                runs[kind].append(measured(kind, loads, options))
                spent[kind] = differences(before, cpu_seconds(process.pid))
        figures |= ratios(runs, loads, options)
        figures["cpu"] = {kind: shares(seconds) for kind, seconds in spent.items()}
        write_figures(options.json, figures)
    if options.soak_minutes:
        with server("panoply", folder, options) as process:
            figures["soak"] = soak(process, [a for x in loads.values() for a in x.asks], options)
        write_figures(options.json, figures)
    print_table(figures)


def saved_model(work: Path, num_heads: int = 1, num_layers: int = 0) -> Path:
    """Returns a folder of SmolLM2-135M with random heads, made once; 0 layers are all."""
    import torch

    from panoply.config import Rendering
    from panoply.hub.artefact.manifest import ScalarManifest
    from panoply.hub.artefact.scalar import save_scalar_model
    from panoply.hub.backbone.backbone import load_backbone

    name = "model" if num_heads == 1 else f"model-{num_heads}-heads"
    folder = (work / (f"{name}-{num_layers}-layers" if num_layers else name)).absolute()
    if folder.exists():
        return folder
    rendering = Rendering(max_prompt_tokens=1024, max_response_tokens=512)
    depths = [num_layers] if num_layers else None
    backbone = load_backbone("embedded", depths=depths, dtype="float32", rendering=rendering)
    torch.manual_seed(0)
    size = backbone.decoder.hidden_size
    heads = torch.randn(num_heads, size) / size**0.5
    manifest = ScalarManifest(
        rendering=rendering,
        temperature=1.0,
        seed=0,
        template_hash="",
        bos=(),
        backbone="embedded",
        depth=len(backbone.decoder.layers),
        dtype="float32",
        sources=("none",),
        data={},
        method={},
        centers=(0.0,) * num_heads,
        scales=(1.0,) * num_heads,
    )
    work.mkdir(parents=True, exist_ok=True)
    save_scalar_model(backbone.decoder.model, backbone.renderer, heads, manifest, folder, [])
    return folder


def make_loads(options: Options, folder: Path) -> dict[str, Load]:
    """Returns the loads, scored in-process on the server's core."""
    import torch

    from panoply.hub.artefact.scalar import load_scalar_model

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {options.server_core})
    model = load_scalar_model(folder)
    model.prepack()  # as the server's replica does
    tokenizer = model.backbone.renderer.tokenizer
    groups = {
        "pairs": read_pairs(options.data, options.pairs),
        "n16": read_summaries(options.data, options.articles),
    }
    groups["distinct"] = [(prompt, texts[:1]) for prompt, texts in groups["pairs"]]
    batches = read_pairs(options.data, options.batches * BATCH, options.batch_characters)
    groups["batch"] = [(prompt, texts[:1]) for prompt, texts in batches]
    model.score(*groups["pairs"][0])  # calibrates
    found: dict[str, Load] = {}
    for name, prompts in groups.items():
        begun = time.monotonic()
        scores = [model.score(prompt, texts).tolist() for prompt, texts in prompts]
        alone = time.monotonic() - begun
        trees = [model.backbone.renderer.render(*one).tree for one in prompts]
        asks: list[Ask] = []
        for (prompt, texts), values in zip(prompts, scores, strict=True):
            opening = tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True
            )
            for text, value in zip(texts, values, strict=True):
                turns = [*prompt, {"role": "assistant", "content": text}]
                whole = tokenizer.apply_chat_template(turns, tokenize=False)
                asks.append(Ask(opening, whole, value))
        separate = sum(tree.num_separate_tokens for tree in trees)
        ideal = separate / sum(tree.num_tokens for tree in trees)
        found[name] = Load(asks, ideal, alone)
    os.sched_setaffinity(0, {options.client_core})
    return found


def read_pairs(
    data: Path, num: int, max_characters: float = float("inf")
) -> list[tuple[Any, list[str]]]:
    """Returns dialogues with chosen and rejected reply, half of each source.

    Args:
        data: folder of the pairs.
        num: dialogues.
        max_characters: longest dialogue with its chosen reply.
    """
    import numpy as np
    import pyarrow.parquet as pq

    found: list[tuple[Any, list[str]]] = []
    for source in ("hh_helpful", "hh_harmless"):
        rows = pq.read_table(data / "pairs" / f"{source}.parquet").to_pylist()
        rows = [row for row in rows if num_characters(row) <= max_characters]
        order = np.random.default_rng(0).permutation(len(rows))[: num // 2]
        found += [(rows[i]["prompt"], [rows[i]["chosen"], rows[i]["rejected"]]) for i in order]
    return found


def num_characters(row: Mapping[str, Any]) -> int:
    """Returns the characters of a dialogue with its chosen reply."""
    return sum(len(turn["content"]) for turn in row["prompt"]) + len(row["chosen"])


def read_summaries(data: Path, num: int) -> list[tuple[Any, list[str]]]:
    """Returns articles with their 16 summaries."""
    import pyarrow.parquet as pq

    rows = pq.read_table(data / "ratings" / "summeval.parquet").to_pylist()
    groups: dict[str, tuple[Any, list[str]]] = {}
    for row in rows:
        groups.setdefault(row["group"], (row["prompt"], []))[1].append(row["response"])
    return list(groups.values())[:num]


@contextmanager
def server(kind: Kind, folder: Path, options: Options) -> Generator[subprocess.Popen[bytes]]:
    """Starts a server on its core, waits until it answers, and stops it in the end."""
    import httpx2

    port = str(PORTS[kind])
    command = {
        "panoply": [
            *("jobs.serve", "models", "--models", f"m={folder}", "--port", port),
            *("--gateway.timeout", "600"),  # a batch waits for all before it, on one slow core
        ],
        "plain": ["benchmarks.plain_server", str(folder), port, str(options.plain_rows)],
    }[kind]
    log = (options.work / f"{kind}.log").open("wb")
    process = subprocess.Popen(
        ["taskset", "-c", str(options.server_core), sys.executable, "-m", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        ends = time.monotonic() + 300
        while True:
            assert process.poll() is None, f"the {kind} server ended: see {log.name}"
            assert time.monotonic() < ends, f"no answer of the {kind} server: see {log.name}"
            try:
                body = {"query": ["Is it on?<|im_end|>\n"], "prompts": [""], "labels": [None]}
                url = f"http://127.0.0.1:{port}/get_reward"
                if httpx2.post(url, json=body, timeout=60).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(1)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()


def cpu_seconds(pid: int) -> dict[str, float]:
    """Returns the CPU seconds of a process and of all that it started, by what they are."""
    import psutil

    seconds: dict[str, float] = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.Error):
            times, command = process.cpu_times(), " ".join(process.cmdline())
            name = next((name for part, name in PROCESSES.items() if part in command), "others")
            seconds[name] = seconds.get(name, 0.0) + times.user + times.system
    return seconds


def differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of each kind of process between two looks."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the share of each kind of process in the CPU time of all, the largest first."""
    total = sum(seconds.values())
    return {name: part / total for name, part in sorted(seconds.items(), key=lambda x: -x[1])}


def measured(kind: Kind, loads: dict[str, Load], options: Options) -> dict[tuple[str, int], Passed]:
    """Returns what a server did with each load, by the number of clients."""
    asyncio.run(drive(kind, loads["distinct"].asks[:16], 8))  # warms it up
    passed = {
        (name, num): asyncio.run(
            drive(kind, load.asks[: OF_EACH * num if num > 1 else OF_ONE], num)
        )
        for name, load in loads.items()
        for num in options.clients
        if name != "batch"
    }
    asks = loads["batch"].asks
    passed["batch", BATCH_CLIENTS] = asyncio.run(drive(kind, asks, BATCH_CLIENTS, BATCH))
    if kind == "panoply":
        passed["singles", BATCH_CLIENTS] = asyncio.run(drive(kind, asks, BATCH_CLIENTS))
    return passed


async def drive(kind: Kind, asks: Sequence[Ask], num_clients: int, size: int = 1) -> Passed:
    """Sends requests of `size` texts in order, as many at once as there are clients."""
    import httpx2

    left = iter([asks[start : start + size] for start in range(0, len(asks), size)])
    latencies, worst = list[float](), 0.0
    url = f"http://127.0.0.1:{PORTS[kind]}/get_reward"
    limits = httpx2.Limits(max_connections=num_clients)

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal worst
        for batch in left:
            begun = time.monotonic()
            body = {
                "query": [ask.query for ask in batch],
                "prompts": [ask.prompt for ask in batch],
                "labels": [None] * len(batch),
            }
            answer = await http.post(url, json=body)
            assert answer.status_code == 200, answer.text
            latencies.append(time.monotonic() - begun)
            for ask, score in zip(batch, answer.json()["rewards"], strict=True):
                worst = max(worst, abs(score - ask.score) / max(1.0, abs(ask.score)))

    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:
        begun = time.monotonic()
        await asyncio.gather(*(client(http) for _ in range(num_clients)))
        seconds = time.monotonic() - begun
    assert worst < CLOSE, f"a score of the {kind} server is {worst:.1e} off"
    return Passed(seconds, latencies, worst)


def ratios(
    runs: dict[Kind, list[dict[tuple[str, int], Passed]]], loads: dict[str, Load], options: Options
) -> dict[str, Any]:
    """Returns the figures of all times so far."""
    most = options.clients[-1]
    found: dict[str, Any] = {}
    for name, load in loads.items():
        num = BATCH_CLIENTS if name == "batch" else most
        theirs = [run[name, num].seconds for run in runs["plain"]]
        ours = [run[name, num].seconds for run in runs["panoply"]]
        each = [b / a for a, b in zip(ours, theirs, strict=True)]
        found[f"c{num}_{name}_vs_plain"] = over_repeats(each) | {"ideal": load.ideal}
    batched = [
        run["singles", BATCH_CLIENTS].seconds / run["batch", BATCH_CLIENTS].seconds
        for run in runs["panoply"]
    ]
    found[f"c{BATCH_CLIENTS}_batch_vs_singles"] = over_repeats(batched)
    for name in loads if 1 in options.clients else ():
        if name != "batch":
            p50s = {k: [run[name, 1].told()["p50_ms"] for run in runs[k]] for k in runs}
            ours_over = [a / b for a, b in zip(p50s["panoply"], p50s["plain"], strict=True)]
            found[f"c1_{name}_p50_vs_plain"] = over_repeats(ours_over)
    served = [run["n16", most].seconds / loads["n16"].alone for run in runs["panoply"]]
    found["served_vs_in_process"] = over_repeats(served)
    found["requests"] = {
        f"{kind} {name} c{num}": passed.told()
        for kind, times in runs.items()
        for (name, num), passed in times[-1].items()
    }
    return found


def soak(process: subprocess.Popen[bytes], asks: Sequence[Ask], options: Options) -> dict[str, Any]:
    """Keeps the server under full load; returns what it did, and its memory over time."""
    import psutil

    def resident() -> float:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return sum(one.memory_full_info().uss for one in tree if one.is_running()) / 2**20

    begun, num, worst, memory = time.monotonic(), 0, 0.0, list[tuple[float, float]]()
    while (now := time.monotonic() - begun) < 60 * options.soak_minutes:
        memory.append((now, resident()))
        passed = asyncio.run(drive("panoply", asks, options.clients[-1]))
        num, worst = num + len(asks), max(worst, passed.worst)
    memory.append((time.monotonic() - begun, resident()))
    after_a_minute = next(size for at, size in memory if at >= 60)
    return {
        "minutes": options.soak_minutes,
        "requests": num,
        "worst_difference": worst,
        "memory_mib_after_a_minute": after_a_minute,
        "memory_mib_at_the_end": memory[-1][1],
        "memory_growth": memory[-1][1] / after_a_minute - 1,
    }


def about(options: Options, loads: dict[str, Load]) -> dict[str, Any]:
    """Returns versions and sizes."""
    import fastapi
    import ray
    import torch
    import transformers

    return setting(
        *(torch, transformers, ray, fastapi),
        model="SmolLM2-135M, random head",
        num_layers=options.num_layers,
        threads=1,
        dtype="float32",
        server_core=options.server_core,
        client_core=options.client_core,
        requests={name: len(load.asks) for name, load in loads.items()},
    )


def print_table(figures: dict[str, Any]) -> None:
    """Prints the ratios, and the requests of both servers."""
    print_figures(figures)
    print_figures(figures["requests"], ("requests_per_second", "p50_ms", "p99_ms"))
    for kind, parts in figures["cpu"].items():
        line = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
        print(f"CPU time of the {kind} server: {line}")
    if "soak" in figures:
        soaked = figures["soak"]
        print(f"soak: {soaked['requests']} right, {soaked['memory_growth']:+.1%} memory")


if __name__ == "__main__":
    run(main, Options)
