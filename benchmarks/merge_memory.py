"""Memory of merging large models: `python -m benchmarks.merge_memory --json FILE`.

A classifier and a policy with numbers made up, in bfloat16, of two depths and otherwise alike, are
merged by `python -m jobs.merge`, each pair in a process of its own. `growth` is the most memory
that is not of files (RssAnon) above that of a merge of two tiny models, in MiB. Bar: one file of
the output and one tensor of each model, whatever the depth. Models and results lie in a temporary
folder of `--work`, which needs about 8 GiB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import harness
from benchmarks.harness import run, setting, write_figures

MIB = 2**20
WIDTH, INNER, HEADS = 2048, 8192, 16
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
LARGE = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS}
PERIOD = 0.01
"""Seconds between two looks at the memory of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is measured."""

    depths: tuple[int, int] = (6, 14)
    """Layers of the two pairs of models, of 134 MB each."""
    work: Path = Path(tempfile.gettempdir())
    """Folder of the models."""


def write_model(folder: Path, tokenizer: Path, depth: int, size: dict[str, int], step: int) -> int:
    """Writes a model a layer a file, so that this process never holds it; returns its bytes.

    Args:
        folder: of the model.
        tokenizer: folder of a model with the tokenizer and the configuration that is changed.
        depth: layers.
        size: fields of the configuration.
        step: 0 is the classifier, and 1 the policy, whose numbers differ a little.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    fields = {**size, "num_hidden_layers": depth, "tie_word_embeddings": not step}
    heads = {"num_key_value_heads": size["num_attention_heads"], "head_dim": None}
    config = AutoConfig.from_pretrained(tokenizer, dtype=torch.bfloat16)
    config = type(config).from_dict({**config.to_dict(), **fields, **heads, "num_labels": 1})
    kind = AutoModelForCausalLM if step else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        numbers = name.split(".layers.")[-1].partition(".")[0]
        part = numbers if ".layers." in name else "rest"
        files.setdefault(part, {})[name] = parameter
    num_bytes, file_of = 0, dict[str, str]()
    for number, parameters in enumerate(files.values(), start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: made_up(tuple(p.shape), step) for name, p in parameters.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(tensors, file)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    harness.write_figures(folder / "model.safetensors.index.json", {"weight_map": file_of})
    return num_bytes


def made_up(shape: tuple[int, ...], step: int) -> torch.Tensor:
    """Returns numbers that repeat; those of another step differ by some per cent."""
    block = torch.randn(MIB, generator=torch.Generator().manual_seed(0))
    block = block + 0.05 * step * block.roll(1)
    num = torch.Size(shape).numel()
    return block.bfloat16().repeat(num // MIB + 1)[:num].view(shape).clone()


def peak_of(words: list[str]) -> tuple[int, float]:
    """Runs a command; returns the most memory of its process that is not of files, and seconds."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = status.read_text().splitlines()
        counts = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        most = max(most, *counts, 0)
        time.sleep(PERIOD)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return 1024 * most, time.perf_counter() - start


def measured(work: Path, tokenizer: Path, depth: int, size: dict[str, int]) -> dict[str, float]:
    """Returns the bytes of a model, the peak of its merge with a policy, and seconds."""
    with tempfile.TemporaryDirectory(dir=work, prefix="merge-") as scratch:
        models = [Path(scratch) / name for name in ("classifier", "policy")]
        sizes = [write_model(m, tokenizer, depth, size, step) for step, m in enumerate(models)]
        flags = ["--shares", "0.3", "--out", f"{scratch}/out", "--report-to", "none"]
        peak, seconds = peak_of(["-m", "jobs.merge", *map(str, models), *flags])
    return {"model": sizes[0], "peak": peak, "seconds": seconds}


def main(options: Options) -> None:
    """Measures and prints a table for RESULTS."""
    import transformers

    from panoply.hub.backbone.smollm2 import embedded_model
    from panoply.hub.merge.folder import SHARD_BYTES

    tokenizer = embedded_model()
    tiny = measured(options.work, tokenizer, 2, TINY)
    layer = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    figures: dict[str, Any] = {
        "setting": setting(torch, transformers, layer=layer, shard=SHARD_BYTES // 2),
        "tiny": tiny,
    }
    print("| layers | model, MiB | a layer | a file of the output | growth | seconds |")
    print("| --- " * 6 + "|")
    for depth in options.depths:
        figure = measured(options.work, tokenizer, depth, LARGE)
        growth = figure["peak"] - tiny["peak"]
        figures[f"{depth} layers"] = {**figure, "growth": growth}
        numbers = (figure["model"], layer, SHARD_BYTES // 2, growth)
        cells = " | ".join(f"{number / MIB:,.0f}" for number in numbers)
        print(f"| {depth} | {cells} | {figure['seconds']:.0f} |", flush=True)
        write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
