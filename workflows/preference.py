"""Preference training from files to a calibrated reward model, top to bottom.

    pairs of one or more sources -> ids, one split, quarantine -> token trees
    -> backbone + heads, step by step:  L = sum_s lambda_s L_s        (MORE, arXiv 2312.07401)
                                     L_s = L_BT + alpha L_policy   (HaF-RM, arXiv 2407.04185)
    -> temperature on *calibrate* -> artefact -> metrics, plots, MLflow

Where this differs from the papers' code:
1. Rewards are read at the last token of each response's own render, never at a pad position.
2. lambda is solved from the gradients of all pairs of a step, over all workers; momentum is real.
3. The best step, if any is kept, is chosen on *select*; *test* only reports.
4. The head does not start at zero, so that the backbone has a gradient from the first step on.
5. Plain mixing, with the same pairs, steps and rates, is trained beside MORE, and both are shown
   raw and with a temperature: a smaller margin alone also lowers a calibration error.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.reward_task import PairRows, TrainTask
from actors.reward_training import DONE, PROGRESS, STOPPED, train_models
from panoply.config.preference import PreferenceConfig
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.artefact.model_card import write_card
from panoply.hub.artefact.scalar import load_scalar_model, save_scalar_model
from panoply.hub.backbone.backbone import resolve
from panoply.hub.policy.trainable import load_trainable
from panoply.measure.calibration import fit_scale, reliability
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.report.sections.pairs import RAW
from panoply.types import Array
from workflows.cluster.embed import ActorPoolSpec
from workflows.cluster.prepare_pairs import Preferences, read_pairs, tokenize, training_rows
from workflows.cluster.ray_cluster import (
    await_workers,
    check_or_write_config,
    connect,
    run_folder,
    run_train,
    store_root,
)
from workflows.cluster.scorers import report_pairs
from workflows.cluster.tracking import git_commit, open_tracker, write_json

OWN, PLAIN = "score", "mixed"
"""The model that is wanted, and plain mixing beside MORE."""
CHECKED_PAIRS = 16


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What training one model left in its folder."""

    folder: Path
    margin_PK: Array
    """NaN where a pair was trained on."""
    history: list[dict[str, Any]]
    delayed: bool
    centers: tuple[float, ...]
    scales: tuple[float, ...]
    """Mean and deviation of each head's scores; 0 and 1 where there is one head."""

    @classmethod
    def read(cls, folder: Path) -> TrainedRun:
        """Reads the results of a finished task."""
        done = json.loads((folder / DONE).read_text())
        margin_PK = np.load(folder / "margins.npy", allow_pickle=False)
        moments = tuple(done["centers"]), tuple(done["scales"])
        return cls(folder, margin_PK, done["history"], done["delayed"], *moments)

    @property
    def margin_P(self) -> Array:
        """The mean of the standardized heads."""
        return (self.margin_PK / np.array(self.scales)).mean(1)


def run_preference(config: PreferenceConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        ValueError, FileNotFoundError: unusable input, before anything expensive starts.
        RuntimeError: a loss or gradient was not finite; the batch is saved.
    """
    out = run_folder(config.out)
    resolve(config.backbone.model)
    tracker = open_tracker(config.experiment, out)
    check_or_write_config(out, "config.json", asdict(config))
    found = read_pairs(config, out / "data")
    check_or_write_config(out, "data.json", {"pairs": found.summary["id"]})
    tags = {"method": "preference", "data.pairs": str(found.summary["id"])}
    with tracker.run(asdict(config), tags, logger, model="preference", steps=OWN):
        return train_and_measure(config, found, out, logger)


def train_and_measure(
    config: PreferenceConfig, found: Preferences, out: Path, logger: RunLogger
) -> dict[str, Any]:
    """Trains the models on pairs that are read; leaves all of the run in its folder.

    Raises:
        ValueError: no pair is left to train on.
        RuntimeError: a loss or gradient was not finite; the batch is saved.
    """
    tokens, cut = tokenize(config, found, out / "data" / "tokens.parquet", logger)
    rows, sources, told = training_rows(config, found, tokens)
    logger.info(f"data: {len(rows.train):,} of {len(rows.source_P):,} pairs to train on, {sources}")
    if config.num_workers:
        connect(config.num_workers)

    tasks = make_tasks(config, rows, found, out)
    train(tasks, config, out / "train", logger)
    trained = {name: TrainedRun.read(Path(task.folder)) for name, task in tasks.items()}

    scales, margins = calibrate(trained, found)
    metrics = measure(margins, scales, found)
    metrics["training"] = {name: summary(model, sources) for name, model in trained.items()}
    metrics["data"] = {"pairs": dict(found.summary) | cut | told}
    metrics["git_commit"] = git_commit()
    if config.loss.reward:
        metrics["artefact"] = save_artefact(
            tasks[OWN], trained[OWN], scales[OWN], sources, found, out
        )
    write_json(out / "metrics.json", metrics)
    history = {name: model.history for name, model in trained.items()}
    write_json(out / "history.json", history)
    if config.loss.reward:
        write_card(out / "model")
    write_report(out)
    return metrics


def make_tasks(
    config: PreferenceConfig, rows: PairRows, found: Preferences, out: Path
) -> dict[str, TrainTask]:
    """Returns the models to train, the wanted one first; beside MORE stands plain mixing."""
    base = TrainTask(
        config=config,
        pairs=rows,
        tokens=str(out / "data" / "tokens.parquet"),
        names=found.names,
        folder="",
        store=store_root(config.store),
        threads=0 if config.num_workers <= 1 else 1,
    )
    tasks = {OWN: replace(base, folder=str(out / "train" / OWN))}
    if config.weighting.sources == "more":
        plain = replace(config, weighting=replace(config.weighting, sources="mixed"))
        tasks[PLAIN] = replace(base, config=plain, folder=str(out / "train" / PLAIN))
    return tasks


def train(
    tasks: Mapping[str, TrainTask], config: PreferenceConfig, run: Path, logger: RunLogger
) -> None:
    """Trains the models on Ray Train, on as many workers as there are.

    Raises:
        RuntimeError: a loss or gradient was not finite.
    """
    folders = [Path(task.folder) for task in tasks.values()]
    for folder in folders:
        (folder / STOPPED).unlink(missing_ok=True)
    gpus = 0.0
    if config.num_workers:
        pool = ActorPoolSpec.of_cluster(config.num_workers, config.gpus)
        await_workers(pool.num_actors, pool.bundle, config.wait_minutes, logger)
        gpus = pool.gpus
    with watching(folders, logger):
        loop = {"tasks": list(tasks.values())}
        run_train(train_models, loop, config.num_workers, run, "preference", gpus=gpus)
    for folder in folders:
        if (folder / STOPPED).exists():
            reason = json.loads((folder / STOPPED).read_text())["reason"]
            raise RuntimeError(
                f"{reason}: training stopped before it changed a weight. The batch is in "
                f"{folder}/nonfinite-*.json; lower `schedule.lr`, or look at those pairs"
            )


@contextmanager
def watching(folders: Sequence[Path], logger: RunLogger) -> Generator[None]:
    """Shows the progress that the workers write."""
    over = threading.Event()

    def look() -> None:
        for folder in folders:
            seen = 0
            while not (folder / PROGRESS).exists() and not over.wait(0.5):
                pass
            if over.is_set():
                return
            total = json.loads((folder / PROGRESS).read_text())["num_steps"]
            with logger.bar(f"training {folder.name}", total) as advance:
                while not over.wait(0.5) and not (folder / DONE).exists():
                    now = json.loads((folder / PROGRESS).read_text())["step"]
                    advance(max(0, now - seen))
                    seen = max(now, seen)
                advance(total - seen if (folder / DONE).exists() else 0)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def calibrate(
    trained: Mapping[str, TrainedRun], found: Preferences
) -> tuple[dict[str, float], dict[str, Array]]:
    """Returns each model's factor to log odds, fitted on *calibrate*, and its margins.

    A model stands there twice: with its factor, and raw, with the margins as they are.
    """
    rows = found.table.split.of("calibrate")
    scales: dict[str, float] = {}
    margins: dict[str, Array] = {}
    for name, model in trained.items():
        scales[name] = fit_scale(model.margin_P[rows] * found.signs_P[rows])
        scales[name + RAW] = 1.0
        margins[name] = margins[name + RAW] = model.margin_P
    return scales, margins


def measure(
    margins: Mapping[str, Array], scales: Mapping[str, float], found: Preferences
) -> dict[str, Any]:
    """Returns the metrics on *test*."""
    rows = found.table.split.of("test")
    return {
        "pairs": report_pairs(margins, found.table, rows, scales),
        "reliability": {
            name: reliability(margin[rows] * scales[name]) for name, margin in margins.items()
        },
    }


def summary(model: TrainedRun, sources: Sequence[str]) -> dict[str, Any]:
    """Returns how training went: steps, tokens, time, losses, and MORE's weights at the end."""
    history = model.history
    looks = [step["select_loss"] for step in history if "select_loss" in step]
    weights = [step["weights"] for step in history if "weights" in step]
    return {
        "num_steps": len(history),
        "tokens": sum(step["tokens"] for step in history),
        "seconds": sum(step["seconds"] for step in history),
        "first_loss": history[0]["loss"],
        "last_loss": float(np.mean([step["loss"] for step in history[-10:]])),
        "select_loss": looks,
        "weights_delayed": model.delayed,
        "mean_weights": dict(zip(sources, np.mean(weights, axis=0).tolist(), strict=True))
        if weights
        else None,
        "margin_mean_absolute": float(np.nanmean(np.abs(model.margin_P))),
    }


def save_artefact(
    task: TrainTask,
    model: TrainedRun,
    scale: float,
    sources: Sequence[str],
    found: Preferences,
    out: Path,
) -> dict[str, Any]:
    """Saves `OUT/model` with its temperature, and compares it with training on some test pairs."""
    config = task.config
    trainable = load_trainable(config.backbone, num_heads=config.num_heads, seed=config.seed)
    state = torch.load(model.folder / "trained.pt", weights_only=True)
    known = {name for name, _ in trainable.net.named_parameters()}
    trainable.net.load_state_dict({k: v for k, v in state.items() if k in known}, strict=False)
    # A frozen language-model head, which a policy loss had beside it, is no part of the model.
    card = ScalarManifest(
        rendering=config.backbone.rendering,
        temperature=1 / scale if scale else float("inf"),
        seed=config.seed,
        template_hash=trainable.renderer.template_hash,
        bos=tuple(trainable.renderer.bos),
        backbone=config.backbone.model,
        depth=trainable.num_layers,
        dtype=str(trainable.dtype).removeprefix("torch."),
        sources=tuple(sources),
        data={"pairs": dict(found.summary)},
        method={
            name: asdict(config)[name] for name in ("loss", "weighting", "schedule", "backbone")
        },
        centers=model.centers,
        scales=model.scales,
    )
    used = found.table.split.key_N[found.table.split.part_N != "test"]
    drift = 0.0
    if not (out / "model").exists():
        heads_KD = trainable.net.head.weight.detach()
        drift = save_scalar_model(
            trainable.backbone(), trainable.renderer, heads_KD, card, out / "model", list(used)
        )
    return {
        "drift": drift,
        "temperature": card.temperature,
        "round_trip_drift": round_trip(out / "model", model, found, str(trainable.dtype)),
    }


def round_trip(folder: Path, trained: TrainedRun, found: Preferences, dtype: str) -> float:
    """Scores test pairs from their texts; returns the largest drift over the margins' deviation.

    Raises:
        RuntimeError: the saved model scores differently.
    """
    import pyarrow.parquet as pq

    rows = found.table.split.of("test")[:CHECKED_PAIRS]
    model = load_scalar_model(folder)
    table = pq.read_table(found.path, columns=["prompt", "chosen", "rejected"]).take(rows)
    margins = [
        float(np.subtract(*model.score(pair["prompt"], [pair["chosen"], pair["rejected"]])))
        for pair in table.to_pylist()
    ]
    wanted = trained.margin_P[rows]
    drift = float(np.abs(np.array(margins) - wanted).max() / np.nanstd(trained.margin_P))
    # In bfloat16 what lies below the trained part was rounded; this finds wrong weights alone.
    bound = 1e-3 if dtype == "torch.float32" else 0.5
    if not drift <= bound:
        raise RuntimeError(
            f"the saved model in {str(folder)!r} differs from training by {drift:.2e} of the "
            f"margins' spread (allowed {bound:g}): do not use it, and report this"
        )
    return drift
