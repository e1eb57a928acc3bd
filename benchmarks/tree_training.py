"""One epoch of Bradley-Terry training: ours and TRL's, each in a process of its own.

Both get the same token ids, weights, steps of eight pairs in one forward, AdamW, learning rate,
schedule and clipping. Time is that of the epoch alone. Memory is the peak of the process during the
epoch, above what it held before and above the state of the optimizer (two numbers a weight).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.tree_baselines import Clock, seconds
from panoply.model.tree import Branch, TokenTree

Trainer = Literal["panoply", "trl", "trl_matched"]
PAIRS_PER_STEP = 8
LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process is told."""

    trainer: Trainer
    folder: str
    dtype: str
    threads: int
    num_layers: int
    clock: Clock
    trees: list[Any]


def compare_training(
    trees: Sequence[TokenTree], folder: str, dtype: str, *, repeats: int, **setting: Any
) -> list[tuple[str, dict[str, Any]]]:
    """Returns the figures of training against TRL, as shipped and matched to our setting.

    Args:
        trees: pairs, chosen first.
        folder: the model.
        dtype: of its weights.
        repeats: epochs of each trainer, in turns.
        setting: `threads`, `num_layers` and `clock` of a `Job`.
    """
    names: tuple[Trainer, ...] = ("panoply", "trl", "trl_matched")
    plain = [asdict(tree) for tree in trees]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            job = Job(trainer=name, folder=folder, dtype=dtype, trees=plain, **setting)
            found[name].append(_in_process(job))
    ideal = sum(t.num_separate_tokens for t in trees) / sum(t.num_tokens for t in trees)
    return [
        ("train_vs_trl", _figure(found, "seconds", "trl", ideal)),
        ("train_vs_trl_matched", _figure(found, "seconds", "trl_matched", ideal)),
        ("train_memory_vs_trl_matched", _figure(found, "megabytes", "trl_matched", 1 / ideal)),
    ]


def _figure(
    found: dict[str, list[dict[str, float]]], key: str, other: str, ideal: float
) -> dict[str, Any]:
    """Times are theirs to ours (faster is more), memory is ours to theirs (smaller is less)."""
    ours, theirs = ([run[key] for run in found[name]] for name in ("panoply", other))
    ratios = [b / a if key == "seconds" else a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "ideal": ideal,
        "share_of_ideal": statistics.median(ratios) / ideal,
        f"panoply_{key}": ours,
        f"{other}_{key}": theirs,
        "losses": [found["panoply"][0]["loss"], found[other][0]["loss"]],
    }


def _in_process(job: Job) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "job.json"
        told.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "benchmarks.tree_training", str(told)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"training with {job.trainer} failed:\n{done.stderr[-3000:]}")
        return json.loads((Path(scratch) / "result.json").read_text())


def as_trees(plain: list[Any]) -> list[TokenTree]:
    """Returns the trees that `asdict` took apart."""
    return [
        TokenTree(
            tuple(tree["shared"]),
            tuple(Branch(tuple(b["tokens"]), b["start"], b["stop"]) for b in tree["branches"]),
            tree["gate"],
        )
        for tree in plain
    ]


def load_classifier(job: Job) -> Any:
    """Returns the model with one score, as both trainers get it."""
    from transformers import AutoModelForSequenceClassification

    from panoply.model.decoder import cut

    torch.manual_seed(0)
    dtype = getattr(torch, job.dtype)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        job.folder, num_labels=1, dtype=dtype
    )
    nn.init.normal_(model.score.weight, std=0.02)
    if job.num_layers:
        cut(model.base_model, job.num_layers)
    return model


def train_with_panoply(job: Job) -> tuple[Callable[[], float], nn.Module]:
    """Returns our epoch and the model."""
    from panoply.hub.backbone.attention import attend_by_trees
    from panoply.model.decoder import Decoder
    from panoply.model.reward_net import RewardNet
    from panoply.preference.batch_sampler import batch_indices
    from panoply.preference.step import PairTree, compute_gradients

    model = load_classifier(job).train()
    decoder = Decoder(model.base_model, [len(model.base_model.layers)], trainable=True)
    assert attend_by_trees(decoder)
    net = RewardNet(decoder, model.score)
    items = [PairTree(tree) for tree in as_trees(job.trees)]
    num_steps = -(-len(items) // PAIRS_PER_STEP)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)

    def epoch() -> float:
        losses: list[float] = []
        for step in range(num_steps):
            chosen = [items[i] for i in batch_indices(0, step, len(items), PAIRS_PER_STEP)]
            loss = compute_gradients(net, chosen, budget=2**20).loss
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss)
        return statistics.mean(losses)

    return epoch, model


def train_with_trl(job: Job, scratch: str) -> tuple[Callable[[], float], nn.Module]:
    """Returns TRL's epoch and the model. Matched: length groups, and no checkpointing as ours."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    model = load_classifier(job)
    rows = [
        {
            "chosen_ids": list(tree.shared + tree.branches[0].tokens),
            "rejected_ids": list(tree.shared + tree.branches[1].tokens),
        }
        for tree in as_trees(job.trees)
    ]
    more: dict[str, Any] = {}
    if job.trainer == "trl_matched":
        for row in rows:
            row["length"] = max(map(len, row.values()))  # pyright: ignore[reportArgumentType]
        more = {
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,
            "gradient_checkpointing": False,
        }
    config = RewardConfig(
        output_dir=scratch,
        num_train_epochs=1,
        per_device_train_batch_size=PAIRS_PER_STEP,
        learning_rate=LEARNING_RATE,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )
    return lambda: float(trainer.train().training_loss), model


def measure(epoch: Callable[[], float], model: nn.Module, clock: Clock) -> dict[str, float]:
    """Returns seconds, megabytes and the mean loss of an epoch."""
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    before, peak, over = _resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    losses: list[float] = []
    spent = seconds(lambda: losses.append(epoch()), clock)
    over.set()
    watcher.join()
    return {
        "seconds": spent,
        "megabytes": peak - before - 2 * sum(sizes) / 2**20,
        "loss": losses[0],
    }


def _resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def run_job(told: Path) -> None:
    """Runs one job and writes its result beside it."""
    job = Job(**json.loads(told.read_text()))
    torch.set_num_threads(job.threads)
    if job.trainer == "panoply":
        epoch, model = train_with_panoply(job)
    else:
        epoch, model = train_with_trl(job, str(told.parent / "trl"))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # in memory, not mapped from the file
    (told.parent / "result.json").write_text(json.dumps(measure(epoch, model, job.clock)))


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
