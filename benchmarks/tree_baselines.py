"""What trees are measured against: the same decoder on separate sequences, as others run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.profiler import ProfilerActivity, profile

from panoply.hub.backbone.renderer import Renderer
from panoply.model.decoder import cut
from panoply.model.tree import Branch, TokenTree

SOURCES = ("hh_harmless", "hh_helpful", "webgpt", "ultrafeedback_mini")
Sequences = list[tuple[int, ...]]
Batches = list[Sequences]
Clock = Literal["wall", "cpu"]


def read_pairs(data: Path, source: str, renderer: Renderer, num_pairs: int) -> list[TokenTree]:
    """Returns the trees of pairs drawn from a source's file by a fixed seed, chosen first."""
    table = pq.read_table(data / "pairs" / f"{source}.parquet")
    order = np.random.default_rng(0).permutation(table.num_rows).tolist()
    rows = (table.slice(i, 1).to_pylist()[0] for i in order)
    trees = (renderer.render(r["prompt"], [r["chosen"], r["rejected"]]).tree for r in rows)
    return list(islice(trees, num_pairs))


def made_up(prompt: int, responses: int, size: int, seed: int = 0) -> TokenTree:
    """Returns a tree of random tokens: `responses` of `size` tokens on a prompt."""
    rng = np.random.default_rng(seed)
    texts = [tuple(rng.integers(5, 40_000, size).tolist()) for _ in range(responses)]
    shared = tuple(rng.integers(5, 40_000, prompt).tolist())
    return TokenTree(shared, tuple(Branch(text, 0, size) for text in texts), gate=prompt - 1)


def separate(trees: Sequence[TokenTree]) -> Sequences:
    """Returns every response with its prompt."""
    return [tree.shared + branch.tokens for tree in trees for branch in tree.branches]


def one_by_one(sequences: Sequences) -> Batches:
    """Batches of one."""
    return [[sequence] for sequence in sequences]


def random_batches(sequences: Sequences, size: int = 8) -> Batches:
    """Batches of `size` in random order."""
    order = np.random.default_rng(1).permutation(len(sequences)).tolist()
    return [[sequences[i] for i in order[a : a + size]] for a in range(0, len(order), size)]


def sorted_batches(sequences: Sequences, budget: int) -> Batches:
    """Sequences by length, as many in a batch as stay below `budget` tokens with the padding."""
    batches: Batches = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0]) > budget:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def padded_tokens(batches: Batches) -> int:
    """Tokens that these batches compute, padding included."""
    return sum(len(batch) * max(map(len, batch)) for batch in batches)


class Separate:
    """The decoder on right-padded batches, in its fastest form: causal, without a mask.

    No token sees the padding to its right, so the last states are right without one.
    """

    def __init__(self, folder: str, dtype: torch.dtype, num_layers: int) -> None:
        from transformers import AutoModel

        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype).eval()
        if num_layers:
            cut(self.model, num_layers)

    @torch.no_grad()
    def run(self, batches: Batches) -> list[torch.Tensor]:
        """Returns the last states of every batch."""
        found: list[torch.Tensor] = []
        for batch in batches:
            ends = torch.tensor([len(sequence) - 1 for sequence in batch])
            tokens = torch.zeros(len(batch), int(ends.max()) + 1, dtype=torch.long)
            for i, sequence in enumerate(batch):
                tokens[i, : len(sequence)] = torch.tensor(sequence)
            states = self.model(input_ids=tokens, use_cache=False).last_hidden_state
            found.append(states[torch.arange(len(batch)), ends].float())
        return found

    def best_budget(self, sequences: Sequences) -> int:
        """Returns the token budget with the fastest sorted batches, on a part of the sequences."""
        part = sequences[:: max(1, len(sequences) // 24)]
        budgets = (512, 1024, 2048, 4096)
        return min(budgets, key=lambda b: seconds(lambda: self.run(sorted_batches(part, b))))


def seconds(run: Callable[[], Any], clock: Clock = "wall") -> float:
    """Returns how long `run` takes."""
    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    run()
    return now() - start


def side_by_side(
    runs: Sequence[Callable[[], Any]], repeats: int, clock: Clock
) -> list[list[float]]:
    """Times runs in turns, A B A B, so that a busy machine slows all of them alike."""
    times = [[seconds(run, clock) for run in runs] for _ in range(repeats)]
    return [list(column) for column in zip(*times, strict=True)]


def where_time_goes(run: Callable[[], Any]) -> dict[str, float]:
    """Returns milliseconds of a run's own time in matrix products, attention and all else."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    spent = {"linear": 0.0, "attention": 0.0, "other": 0.0}
    for event in cast(Any, profiler.key_averages()):
        name, own = str(event.key), float(event.self_cpu_time_total) / 1e3
        if "attention" in name:
            spent["attention"] += own
        elif name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::_mkl_linear") or (
            "mkldnn" in name
        ):
            spent["linear"] += own
        else:
            spent["other"] += own
    return spent
