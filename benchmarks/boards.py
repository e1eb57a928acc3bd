"""Boards: `python -m benchmarks.boards --json FILE`.

A scalar model with a random head on SmolLM2-135M scores RM-Bench's file of pairs (`--data`), of
which a drawn share of the items is taken.

`trees_distinct`: seconds of a loop in the manner of the reward-bench package (each response with
its prompt by the chat template, batches of 8 in the file's order, padded on the right) over those
of the actor that scores boards, on the same texts: each response of an item once.
`trees_rows`: the same where that loop takes the file as it is, a pair a row, so that a response is
scored with every partner. Bar: at least 2.5. `drift` is the largest difference of the scores over
their deviation. Bar: at most 1e-4.
`workers`: seconds of one actor over those of two, on Ray, both without the seconds that they take
for items of a word each, which are those of loading. Bar: at least 1.8.
`report`: the command on recorded scores of pairs of made-up words, as a process of its own. Bars:
30 s for 1,000,000 rows, and a peak of memory of at most 1.5 times that of the same items with a
tenth of the rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from actors.rescorer import RescoringActor, shard_of
from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, settings_of, write_figures
from panoply.boards import load_board
from panoply.boards.items import BoardItem, read_items
from panoply.config import Rendering
from panoply.config.preference import Lora, TrainedBackboneConfig
from panoply.config.serve import ServedModelConfig
from panoply.data.read import Input
from panoply.data.score_file import SCORES, SCORES_FILE, ScoreFolder
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.artefact.scalar import save_scalar_model
from panoply.hub.policy.trainable import load_trainable
from panoply.report.progress import RunLogger
from panoply.secret import Keys
from panoply.wire.request import Chat
from workflows.cluster.kept_scores import ITEMS_AT_ONCE, score_missing

Part = Literal["trees", "workers", "report"]
WHOLE = Rendering(max_prompt_tokens=4096, max_response_tokens=4096)
"""Cuts nothing, as the loop beside it does not."""
WORDS = ("the", "egg", "boils", "in", "hot", "water", "for", "ten", "minutes", "and", "cools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    data: Path = Path("../shared/data/pairs/rmbench.parquet")
    """RM-Bench, in one of the layouts that the board reads."""
    parts: tuple[Part, ...] = ("trees", "workers", "report")
    """What is measured."""
    items: int = 24
    """Items whose responses are scored both ways."""
    worker_items: int = 160
    """Items that one actor and two score, at the default limits of tokens; 16 are a call."""
    threads: int = 2
    """Threads of torch of the first part; an actor has one."""
    repeats: int = 1
    """Times that each part is measured, in turn."""
    pairs: int = 25_000
    """Pairs whose scores are reported on."""
    scorers: int = 20
    """Scorers of these pairs."""
    seed: int = 0
    """Seed of the head and of the share of the items."""


def main(options: Options) -> None:
    """Measures, prints and writes the figures."""
    torch.set_num_threads(options.threads)
    about = setting(torch, transformers, pa, **settings_of(options))
    figures: dict[str, Any] = {"setting": about}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            match part:
                case "trees":
                    figures |= trees(Path(folder), options)
                case "workers":
                    figures["workers"] = workers(Path(folder), options)
                case "report":
                    figures["report"] = report(Path(folder), options)
            write_figures(options.json, figures)
    print_figures(figures, ("ratio", "min", "max", "seconds", "drift", "megabytes"))


def drawn_items(work: Path, options: Options, num: int) -> list[BoardItem]:
    """Returns a share of the board's items, drawn by a seed, in the order of the file."""
    inputs = [Input(options.data)]
    items, _ = read_items(load_board("rmbench"), inputs, work / "quarantine.jsonl", 0.2)
    taken = np.random.default_rng(options.seed).permutation(len(items))[:num]
    return [items[i] for i in sorted(taken.tolist())]


def save_model(folder: Path, rendering: Rendering, seed: int) -> Path:
    """Saves a scalar model with a random head."""
    backbone = TrainedBackboneConfig(dtype="float32", trained=Lora(rank=1), rendering=rendering)
    trainable = load_trainable(backbone, seed=seed)
    model: Any = trainable.backbone()
    width = model.config.hidden_size
    torch.manual_seed(seed)
    manifest = ScalarManifest(
        rendering=rendering,
        temperature=1.0,
        seed=seed,
        template_hash=trainable.renderer.template_hash,
        bos=tuple(trainable.renderer.bos),
        backbone="embedded",
        depth=trainable.num_layers,
        dtype="float32",
        sources=("none",),
        data={},
        method={},
        centers=(0.0,),
        scales=(1.0,),
    )
    head_1D = torch.randn(1, width) / width**0.5
    save_scalar_model(model, trainable.renderer, head_1D, manifest, folder, [])
    return folder


# Trees


def trees(work: Path, options: Options) -> dict[str, Any]:
    """Returns the figures of scoring by trees beside a loop over padded batches."""
    items = drawn_items(work, options, options.items)
    folder = save_model(work / "whole", WHOLE, options.seed)
    ours, theirs = Ours(folder), Loop(folder)
    ours.scores(items[:1])  # loads
    distinct = [(item, text) for item in items for text in item.chat.responses]
    rows = [(item, text) for item in items for pair in pairs_of(item) for text in pair]
    ours_S, distinct_S, rows_S = [], [], []
    drift = 0.0
    for _ in range(options.repeats):
        ours_score, seconds = timed(lambda: ours.scores(items))
        ours_S.append(seconds)
        loop_score, seconds = timed(lambda: theirs.scores(distinct))
        distinct_S.append(seconds)
        drift = max(drift, float(abs(ours_score - loop_score).max() / loop_score.std()))
        rows_S.append(timed(lambda: theirs.scores(rows))[1])
    both = {"seconds": float(np.median(ours_S)), "drift": drift, "items": len(items)}
    return {
        "trees_distinct": over_repeats(
            [b / a for a, b in zip(ours_S, distinct_S, strict=True)], texts=len(distinct), **both
        ),
        "trees_rows": over_repeats(
            [b / a for a, b in zip(ours_S, rows_S, strict=True)], texts=len(rows), **both
        ),
    }


def pairs_of(item: BoardItem) -> list[tuple[str, str]]:
    """Returns the pairs of an item, a right response and a wrong one."""
    texts = item.chat.responses
    return [(texts[right], texts[wrong]) for right in item.right for wrong in item.wrong]


def timed(work: Any) -> tuple[Any, float]:
    """Returns what some work returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


class Ours:
    """The actor that scores boards, in this process."""

    def __init__(self, folder: Path) -> None:
        self.actor = RescoringActor(ServedModelConfig(name="rm", where=str(folder)), Keys())

    def scores(self, items: Sequence[BoardItem]) -> np.ndarray:
        """Returns the scores of all responses, asked for as a run does."""
        scores: list[float] = []
        for start in range(0, len(items), ITEMS_AT_ONCE):
            part = items[start : start + ITEMS_AT_ONCE]
            shard = shard_of({item.item_id: item.chat for item in part})
            scores += self.actor(pa.table({"items": [shard]}))["score"].to_pylist()
        return np.array(scores)


class Loop:
    """The same classifier by transformers alone, on padded batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "right"
        classifier: Any = transformers.AutoModelForSequenceClassification
        self.model = classifier.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def scores(self, texts: Sequence[tuple[BoardItem, str]]) -> np.ndarray:
        """Returns the scores of responses, each with the prompt of its item."""
        scores: list[float] = []
        for start in range(0, len(texts), 8):
            rendered = [
                self.tokenizer.apply_chat_template(
                    [*item.chat.prompt, {"role": "assistant", "content": text}], tokenize=False
                )
                for item, text in texts[start : start + 8]
            ]
            batch = self.tokenizer(
                rendered, padding=True, add_special_tokens=False, return_tensors="pt"
            )
            scores += self.model(**batch).logits[:, 0].float().tolist()
        return np.array(scores)


# Workers


def workers(work: Path, options: Options) -> dict[str, Any]:
    """Returns the speed of two actors over that of one."""
    folder = save_model(work / "cut", Rendering(), options.seed)
    items = {item.item_id: item.chat for item in drawn_items(work, options, options.worker_items)}
    # As many calls as there are actors, of a word each: the seconds are those of loading.
    short = Chat(prompt=({"role": "user", "content": "Hi"},), responses=("Hi",))
    ratios: list[float] = []
    whole: list[float] = []
    for repeat in range(options.repeats):
        seconds: list[float] = []
        loading: list[float] = []
        for num in (1, 2):
            name = f"{num}-{repeat}"
            few = {str(i): short for i in range(num * ITEMS_AT_ONCE)}
            loading.append(seconds_of(folder, few, num, work / f"{name}-loading"))
            seconds.append(seconds_of(folder, items, num, work / name))
        whole.append(seconds[0] / seconds[1])
        ratios.append((seconds[0] - loading[0]) / (seconds[1] - loading[1]))
    return over_repeats(ratios, whole_with_loading=whole, items=len(items))


def seconds_of(model: Path, items: Mapping[str, Chat], num_workers: int, out: Path) -> float:
    """Returns the seconds in which actors that are yet to be started score some items."""
    scorer = ServedModelConfig(name="rm", where=str(model))
    scores = ScoreFolder(out)
    start = time.perf_counter()
    score_missing(scorer, items, scores, num_workers, [], RunLogger())
    return time.perf_counter() - start


# Report


def report(work: Path, options: Options) -> dict[str, Any]:
    """Returns seconds and peak memory of the report of many scorers, and of a tenth of them."""
    pairs = work / "pairs.parquet"
    write_pairs(pairs, options)
    items, _ = read_items(load_board("pairs"), [Input(pairs)], work / "quarantine.jsonl", 0)
    runs: dict[int, tuple[float, float]] = {}
    for num in (max(1, options.scorers // 10), options.scorers):
        scores = work / f"scores-{num}" / SCORES_FILE
        write_scores(scores, items, num, options.seed)
        names = [f"s{i}=replay:{scores}" for i in range(num)]
        command = [sys.executable, "-m", "jobs.board", "pairs", "--files", str(pairs)]
        command += ["--scorers", *names, "--out", str(work / f"out-{num}"), "--report-to", "none"]
        runs[num] = measured(command)
    (few_seconds, few_peak), (seconds, peak) = runs.values()
    rows = options.scorers * sum(len(item.chat.responses) for item in items)
    return over_repeats(
        [peak / few_peak],
        rows=rows,
        seconds=seconds,
        seconds_of_a_tenth=few_seconds,
        megabytes=peak,
        megabytes_of_a_tenth=few_peak,
    )


def write_pairs(file: Path, options: Options) -> None:
    """Writes pairs of made-up words."""
    rng = np.random.default_rng(options.seed)

    def text(size: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=size))

    rows = [
        {"prompt": f"{i} {text(20)}", "chosen": f"a {text(60)}", "rejected": f"b {text(60)}"}
        for i in range(options.pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_scores(file: Path, items: Sequence[BoardItem], num_scorers: int, seed: int) -> None:
    """Writes recorded scores of all responses by scorers that like the right one by so much."""
    file.parent.mkdir()
    sizes = [len(item.chat.responses) for item in items]
    is_right = [place in item.right for item in items for place in range(len(item.chat.responses))]
    ids = pa.array([item.item_id for item in items]).take(np.repeat(np.arange(len(items)), sizes))
    candidates = pa.array(np.concatenate([np.arange(size) for size in sizes]), pa.int32())
    num = len(is_right)
    empty = {name: pa.nulls(num, SCORES.field(name).type) for name in SCORES.names[4:]}
    empty["transient"] = pa.repeat(False, num)
    with pq.ParquetWriter(file, SCORES) as writer:
        for number in range(num_scorers):
            noise = np.random.default_rng((seed, number)).normal(size=num)
            score = pa.array(noise + np.array(is_right) * number / num_scorers)
            columns = [pa.repeat(f"s{number}", num), ids, candidates, score, *empty.values()]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCORES))


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Returns the seconds of a command and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    run(main, Options)
