"""Parts of the first day on a GPU: `python -m benchmarks.gpu_parts JOB.json`, each in a process.

A kernel that fails can leave a GPU unusable for its process, and one that hangs cannot be stopped
from inside: so every part has a process of its own, and writes a figure as soon as it has it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_exactness import exactness
from benchmarks.gpu_rivals import Padded, Varlen
from benchmarks.gpu_setting import Setting, Size, num_compilations, times_faster
from benchmarks.gpu_training import training
from benchmarks.harness import write_figures
from benchmarks.tree_baselines import padded_tokens, separate, sorted_batches
from panoply.config.serve import BatchConfig
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.model.attention import make_plan
from panoply.model.decoder import Decoder, Kernel
from panoply.model.forward import encode
from panoply.model.gather import Tokenized, merge_prefixes
from panoply.model.layout import to_layout
from panoply.model.tree import TokenTree, pack
from panoply.serve.batching import Batcher

Figures = Iterator[tuple[str, dict[str, Any]]]
ITEMS, SHARED_TOKENS, ITEM_TOKENS = 10, 120, 180
"""Responses of a served request, tokens of its prompt, and tokens of each response."""


def scoring(setting: Setting) -> Figures:
    """Yields the speed of scoring pairs and 16 samples of a prompt, beside other ways to score."""
    for size in setting.sizes:
        decoder = setting.decoder(size, setting.dtype)
        for workload, trees in (("pairs", setting.pairs(64)), ("n16", setting.samples())):
            yield from beside_rivals(setting, decoder, f"{workload}_{size}", trees)
        del decoder
        setting.release()
    yield "compilations_of_scoring", {"value": num_compilations(), "unit": ""}


def beside_rivals(
    setting: Setting, decoder: Decoder, name: str, trees: Sequence[TokenTree]
) -> Figures:
    """Yields the figures of scoring some trees."""
    sequences = separate(trees)
    batches = sorted_batches(sequences, setting.budget)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: encode_by(decoder, setting.kernel, trees, setting.budget),
        "padded_sdpa": lambda: Padded(decoder).run(batches),
    }
    if not setting.tiny:
        runs["several_calls"] = lambda: encode_by(decoder, "calls", trees, setting.budget)
        runs["varlen_flash"] = lambda: Varlen(decoder).run(batches)
    times = setting.seconds(runs)
    num_separate, num_tokens = sum(map(len, sequences)), sum(tree.num_tokens for tree in trees)
    more = {
        "tokens_per_second": num_separate / min(times["ours"]),
        "host_seconds": host_seconds(trees, setting.budget),
        "gibibytes": setting.gibibytes(runs["ours"]),
    }
    computed = {"several_calls": num_tokens, "padded_sdpa": padded_tokens(batches)}
    for rival, column in times.items():
        if rival != "ours":
            ideal = computed.get(rival, num_separate) / num_tokens
            peak = setting.gibibytes(runs[rival])
            yield (
                f"{name}_vs_{rival}",
                times_faster(column, times["ours"], ideal=ideal, their_gibibytes=peak, **more),
            )


def encode_by(decoder: Decoder, kernel: Kernel, trees: Sequence[TokenTree], budget: int) -> Tensor:
    """Returns the last states of all responses, by a kernel."""
    decoder.kernel = kernel
    return encode(decoder, trees, budget=budget).last_RLD


def host_seconds(trees: Sequence[TokenTree], budget: int) -> float:
    """Returns the time that Python takes to pack, lay out and plan the rows of trees."""
    start = time.perf_counter()
    for row in pack(trees, budget):
        make_plan(to_layout(row.trees))
    return time.perf_counter() - start


def serving(setting: Setting) -> Figures:
    """Yields the throughput of the serving queue, in process: no HTTP and no Ray."""
    num_requests, clients = (6, 3) if setting.tiny else (64, 32)
    requests = [request(seed) for seed in range(num_requests)]
    for size in setting.sizes:
        yield f"served_{size}_vs_padded_requests", queued(setting, size, requests, clients)
        setting.release()
    yield "compilations_of_serving", {"value": num_compilations(), "unit": ""}


def queued(
    setting: Setting, size: Size, requests: Sequence[Sequence[Tokenized]], clients: int
) -> dict[str, Any]:
    """Returns the figure of requests to the queue, beside a padded batch for each request."""
    decoder, head_D = setting.decoder(size, setting.dtype), setting.head(size)
    decoder.kernel = setting.kernel
    plain = [[c.tokens for c in asked] for asked in requests]
    latencies: list[float] = []

    def score(conversations: Sequence[Tokenized]) -> list[float]:
        gathered = merge_prefixes(conversations)
        last_RD = encode(decoder, gathered.trees, budget=setting.budget).last_RLD[:, 0]
        scores = (last_RD @ head_D.cpu()).tolist()
        return [scores[place] for place in gathered.places]

    times = setting.seconds(
        {
            "ours": lambda: latencies.extend(asyncio.run(served(score, requests, clients))),
            "padded": lambda: Padded(decoder).run(plain),
        }
    )
    cuts = quantiles(latencies[len(requests) :], n=100)
    tokens = SHARED_TOKENS + ITEMS * ITEM_TOKENS
    return times_faster(
        times["padded"],
        times["ours"],
        ideal=ITEMS * (SHARED_TOKENS + ITEM_TOKENS) / tokens,
        items_per_second=len(requests) * ITEMS / min(times["ours"]),
        p50_ms=1e3 * cuts[49],
        p99_ms=1e3 * cuts[98],
    )


def request(seed: int) -> list[Tokenized]:
    """Returns the conversations of a request: responses of random tokens to one prompt."""
    draw = torch.Generator().manual_seed(seed)
    size = SHARED_TOKENS + ITEMS * ITEM_TOKENS
    tokens = torch.randint(5, 40_000, (size,), generator=draw).tolist()
    prompt, rest = tuple(tokens[:SHARED_TOKENS]), tokens[SHARED_TOKENS:]
    texts = [tuple(rest[i : i + ITEM_TOKENS]) for i in range(0, len(rest), ITEM_TOKENS)]
    stop = SHARED_TOKENS + ITEM_TOKENS
    return [Tokenized(prompt + text, SHARED_TOKENS - 1, SHARED_TOKENS, stop) for text in texts]


async def served(
    score: Callable[[Sequence[Tokenized]], list[float]],
    requests: Sequence[Sequence[Tokenized]],
    clients: int,
) -> list[float]:
    """Returns the seconds of each request, asked by so many clients at a time.

    Raises:
        RuntimeError: a response got no number.
    """
    batcher = Batcher(score, BatchConfig())
    free, latencies = asyncio.Semaphore(clients), list[float]()

    async def ask(conversations: Sequence[Tokenized]) -> None:
        async with free:
            start = time.perf_counter()
            scores = await batcher.score(conversations, timeout=120.0)
            latencies.append(time.perf_counter() - start)
        if failed := [s for s in scores if isinstance(s, Exception) or s != s]:
            raise RuntimeError(f"{len(failed)} of {len(scores)} scores failed: {failed[0]!r}")

    await asyncio.gather(*map(ask, requests))
    return latencies


PARTS: dict[str, Callable[[Setting], Figures]] = {
    "exactness": exactness,
    "scoring": scoring,
    "training": training,
    "serving": serving,
}


def run_part(job: Path) -> None:
    """Runs the part that a file names, and writes its figures beside it."""
    asked = json.loads(job.read_text())
    silence_libraries()
    figures: dict[str, Any] = {}
    for name, figure in PARTS[asked["part"]](Setting(tiny=asked["tiny"])):
        figures[name] = figure
        write_figures(job.with_name("figures.json"), figures)


if __name__ == "__main__":
    run_part(Path(sys.argv[1]))
