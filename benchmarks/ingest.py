"""Reading pairs beside `datasets` and TRL: `python -m benchmarks.ingest --json FILE`.

Pairs are written as Parquet and as JSON lines, with texts or with messages, and each side reads
them in a process of its own, on one thread, with nothing cached:

* `ingest`: what every run of ours does before a model is loaded. It checks each row, quarantines
  the bad ones, counts repeats and contradictions, gives ids, and writes one canonical Parquet file;
* `ingest_and_render`: the same, and all pairs rendered to tokens as preference training needs them;
* `load`: `datasets.load_dataset` alone, which checks nothing but the types;
* `load_and_prepare`: `load_dataset` and `RewardTrainer._prepare_dataset` of TRL, called as it
  stands: it adds the end of sequence, tokenizes and leaves out pairs above `max_length`.

Of messages both sides make the same: conversations in the model's chat template. Of texts ours are
that too, while TRL's are a prompt and a response without template (31 tokens fewer in each).

`speed`: rows a second of CPU time of `ingest_and_render` over `load_and_prepare`, with one
tokenizer. Bar: at least 1. `memory`: peak of `ingest` over its peak at a tenth of the rows. Bar: at
most 1.5. CPU time counts, for other work on the machine stretches wall time, which stands beside.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import print_figures, run, setting, write_figures

THREADS = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
WORDS = [
    "apple",
    "brick",
    "cloud",
    "drift",
    "eagle",
    "flame",
    "grass",
    "honey",
    "island",
    "jolly",
    "kettle",
    "lemon",
    "river",
]
BATCH = 10_000
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    rows: int = 1_000_000
    """Pairs of each file."""
    rendered_rows: int = 100_000
    """Pairs of each file that are also tokenized, on both sides."""
    tokenizer: str = "embedded"
    """Model whose tokenizer both sides take."""
    max_length: int = 1024
    """Tokens above which TRL leaves a pair out."""
    form: Literal["messages", "texts"] = "messages"
    """What the columns hold."""


def pairs(num: int, form: str) -> Iterator[dict[str, Any]]:
    """Yields pairs of random words: a prompt of 16, responses of 30."""
    random = Random(0)
    for i in range(num):
        prompt, chosen, rejected = (" ".join(random.choices(WORDS, k=k)) for k in (15, 30, 30))
        pair = {"prompt": f"{i} {prompt}", "chosen": f"{chosen}.", "rejected": f"{rejected}."}
        if form == "texts":
            yield pair
            continue
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        yield {name: [{"role": roles[name], "content": text}] for name, text in pair.items()}


def write_files(folder: Path, num: int, form: str) -> tuple[Path, Path]:
    """Writes the same pairs as Parquet and as JSON lines."""
    columns, lines = folder / f"pairs-{num}.parquet", folder / f"pairs-{num}.jsonl"
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    kind = pa.string() if form == "texts" else pa.list_(message)
    schema = pa.schema([(name, kind) for name in ("prompt", "chosen", "rejected")])
    rows = list[dict[str, Any]]()
    with pq.ParquetWriter(columns, schema) as writer, lines.open("w") as text:
        for pair in pairs(num, form):
            rows.append(pair)
            text.write(json.dumps(pair) + "\n")
            if len(rows) == BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return columns, lines


def ingest(file: Path, work: Path) -> None:
    """Reads pairs as every run does."""
    from panoply.data.ingest import ingest_pairs
    from panoply.data.read import Input
    from panoply.data.split import check_parts

    check_parts(ingest_pairs([Input(file)], work).path, 0)


def ingest_and_render(file: Path, work: Path, tokenizer: str) -> None:
    """Reads pairs and renders them to tokens as preference training does."""
    from transformers import AutoTokenizer

    from panoply.config import Rendering
    from panoply.data.parquet import row_batches
    from panoply.data.tokens import write_tokens
    from panoply.hub.backbone.pretrained import resolve
    from panoply.hub.backbone.renderer import Renderer

    ingest(file, work)
    renderer = Renderer(AutoTokenizer.from_pretrained(resolve(tokenizer)), Rendering())

    def trees() -> Iterator[Any]:
        with pq.ParquetFile(work / "pairs.parquet") as opened:
            for batch in row_batches(opened, 256, ["prompt", "chosen", "rejected"]):
                rows = batch.to_pylist()
                pairs = [(row["prompt"], (row["chosen"], row["rejected"])) for row in rows]
                for rendered in renderer.render_all(pairs):
                    yield rendered.tree

    write_tokens(work / "tokens", trees(), {})


def load(file: Path, work: Path) -> Any:
    """Reads pairs as users of `datasets` do."""
    import datasets

    datasets.disable_progress_bars()
    kind = "parquet" if file.suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(work))


def load_and_prepare(file: Path, work: Path, tokenizer: str, max_length: int) -> None:
    """Reads pairs and prepares them as TRL's reward trainer does."""
    from transformers import AutoTokenizer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from panoply.hub.backbone.pretrained import resolve

    loaded = load(file, work)
    words = AutoTokenizer.from_pretrained(resolve(tokenizer))
    settings = RewardConfig(
        output_dir=str(work), max_length=max_length, report_to=[], use_cpu=True, bf16=False
    )
    prepare: Any = RewardTrainer._prepare_dataset  # pyright: ignore[reportPrivateUsage]
    prepare(None, loaded, words, settings, "train")


def measure(side: Callable[[Path, Path], object], file: Path, warm_up: Path) -> dict[str, float]:
    """Returns seconds and peak memory of a side in this process, behind a run on few rows.

    That run loads modules and is not counted.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory() as work:
        side(warm_up, Path(work))
    with tempfile.TemporaryDirectory() as work:
        before = time.process_time(), time.perf_counter()
        side(file, Path(work))
        cpu, wall = time.process_time() - before[0], time.perf_counter() - before[1]
    return {"cpu_seconds": cpu, "wall_seconds": wall, "peak_megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """Returns the peak of this program's memory. `ru_maxrss` would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return peak * 1024 / MEGABYTE


def in_process(
    side: Callable[[Path, Path], object], file: Path, warm_up: Path, num: int
) -> dict[str, float]:
    """Measures a side in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        figure = pool.submit(measure, side, file, warm_up).result()
    return {
        "rows": num,
        "rows_per_cpu_second": num / figure["cpu_seconds"],
        "rows_per_second": num / figure["wall_seconds"],
        **figure,
    }


def main(options: Options) -> None:
    """Measures both sides on both formats, and prints and writes the figures."""
    import datasets
    import trl

    os.environ.update(THREADS)
    rendered = partial(ingest_and_render, tokenizer=options.tokenizer)
    prepared = partial(load_and_prepare, tokenizer=options.tokenizer, max_length=options.max_length)
    sides: dict[str, tuple[Callable[[Path, Path], object], int]] = {
        "ingest": (ingest, options.rows),
        "ingest, a tenth": (ingest, options.rows // 10),
        "load": (load, options.rows),
        "ingest_and_render": (rendered, options.rendered_rows),
        "load_and_prepare": (prepared, options.rendered_rows),
    }
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {1000, *(num for _, num in sides.values())}
        files = {num: write_files(folder, num, options.form) for num in sizes}
        for i, kind in enumerate(("parquet", "jsonl")):
            for side, (work, num) in sides.items():
                figures[f"{side} ({kind})"] = in_process(work, files[num][i], files[1000][i], num)
            ours = figures[f"ingest_and_render ({kind})"]["rows_per_cpu_second"]
            theirs = figures[f"load_and_prepare ({kind})"]["rows_per_cpu_second"]
            whole, tenth = figures[f"ingest ({kind})"], figures[f"ingest, a tenth ({kind})"]
            figures[f"speed ({kind})"] = {"ratio": ours / theirs}
            growth = whole["peak_megabytes"] / tenth["peak_megabytes"]
            figures[f"memory ({kind})"] = {"ratio": growth}
    figures["setting"] = setting(pa, datasets, trl, threads=1, rows=options.rows, form=options.form)
    print_figures(figures, ("rows_per_cpu_second", "rows_per_second", "peak_megabytes"))
    print_figures(figures, ("ratio",))
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
