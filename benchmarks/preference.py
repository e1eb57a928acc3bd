"""Do the papers' claims hold here? `python -m benchmarks.preference EXPERIMENT --json FILE`.

`more`: MORE, plain mixing, single-source models and their averages, on five sources.
`haf`: HaF-RM's alpha in {0, .2, 1}, DPO as reward model, BT + SFT, in and out of domain.
`smoothing`: iterative data smoothing against early stopping and label smoothing, under flipped
labels, on frozen features and several epochs.

Same pairs, same steps, same rates for all that is compared; three seeds, which move the split and
every initialization. A finished model is not trained again: the same command goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import tyro

from panoply.config import Rendering
from panoply.train.config import (
    LossConfig,
    PreferenceConfig,
    ScheduleConfig,
    TrunkConfig,
    WeightingConfig,
)

FIVE = ("hh_helpful", "hh_harmless", "alpacaeval_gpt4", "ukp_convarg", "truthfulqa")
CHAT = ("hh_helpful", "hh_harmless", "alpacaeval_gpt4")
AWAY = ("truthfulqa", "ukp_convarg", "xstest")
Experiment: TypeAlias = Literal["more", "haf", "smoothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is run."""

    experiment: tyro.conf.Positional[Experiment]
    json: Path
    """Where the figures go."""
    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet`."""
    work: Path = Path("runs/benchmark-preference")
    """Folder of the trained models."""
    seeds: tuple[int, ...] = (0, 1, 2)
    pairs: int = 400
    """Most pairs of a source; 70 % are trained on."""
    lr: float = 1e-4
    """Peak rate of the trunk, the same for all; not tuned for any of them."""
    head_lr: float = 1e-3
    threads: int = 1


def main(options: Options) -> None:
    """Runs an experiment and writes its figures after every model."""
    from panoply.hub.backbone import quiet
    from workflows.tracking import write_json

    quiet()
    torch.set_num_threads(options.threads)
    run = {"more": more, "haf": haf, "smoothing": smoothing}[options.experiment]
    figures: dict[str, Any] = {"setting": setting(options)}
    for seed in options.seeds:
        for name, found in run(options, seed).items():
            figures.setdefault(name, {})[str(seed)] = found
            write_json(options.json, figures)
    show(figures)


def base(
    options: Options, seed: int, sources: tuple[str, ...], depth: float = 0.6
) -> PreferenceConfig:
    """Returns the run that all others are variants of."""
    return PreferenceConfig(
        pairs=tuple(str(options.data / "pairs" / f"{source}.parquet") for source in sources),
        max_pairs_per_source=options.pairs,
        seed=seed,
        trunk=TrunkConfig(
            trained="last",
            depth=depth,
            rendering=Rendering(max_prompt_tokens=128, max_response_tokens=96),
        ),
        schedule=ScheduleConfig(pairs_per_step=20, lr=options.lr, head_lr=options.head_lr),
        num_workers=0,
        store=str(options.work / "store"),
    )


class Bench:
    """The pairs of one seed, and the models that are trained on them."""

    def __init__(self, config: PreferenceConfig, folder: Path) -> None:
        from workflows.comparisons import read_pairs, tokenize, training_rows
        from workflows.progress import Watch

        self.config, self.folder = config, folder
        self.found = read_pairs(config, folder / "data")
        self.tokens_path = folder / "data" / "tokens.parquet"
        tokens, _ = tokenize(config, self.found, self.tokens_path, Watch())
        self.rows, self.sources, _ = training_rows(config, self.found, tokens)
        self.source_P = self.found.table.source_P

    def task(self, name: str, config: PreferenceConfig, sources: tuple[str, ...] = ()) -> Any:
        """Returns the task of training on some of the sources, by default on all."""
        from actors.learner import TrainTask

        rows = self.rows
        if sources:
            train = rows.train[np.isin(self.source_P[rows.train], sources)]
            # Numbers of sources without a gap, those trained on first.
            order = [*sources, *sorted(set(self.source_P) - set(sources))]
            number = np.array([order.index(source) for source in self.source_P])
            select = rows.select[np.isin(self.source_P[rows.select], sources)]
            rows = replace(rows, train=train, select=select, source_P=number)
        return TrainTask(
            config=config,
            pairs=rows,
            tokens=str(self.tokens_path),
            names=self.found.names,
            folder=str(self.folder / name),
            store=config.store,
        )

    def fit(self, name: str, config: PreferenceConfig, sources: tuple[str, ...] = ()) -> Any:
        """Trains a model if it is not there, and returns what it left."""
        from actors.training import DONE, run_task
        from panoply.train.group import Group
        from workflows.preference import Trained

        task, began = self.task(name, config, sources), time.perf_counter()
        if not (Path(task.folder) / DONE).exists():
            run_task(task, Group())
            print(f"{self.folder.name} {name}: {time.perf_counter() - began:.0f} s", flush=True)
        return Trained.read(Path(task.folder))

    def report(
        self, margin_P: Any, sources: tuple[str, ...], calibrated_on: tuple[str, ...]
    ) -> dict[str, float]:
        """Returns metrics on *test*, the mean of the sources', raw and with a temperature."""
        from panoply.measure.calibration import fit_scale
        from workflows.scorers import report_pairs

        split = self.found.table.split
        known = split.of("calibrate")
        known = known[np.isin(self.source_P[known], calibrated_on)]
        scale = fit_scale(margin_P[known] * self.found.signs_P[known])
        rows = split.of("test")
        rows = rows[np.isin(self.source_P[rows], sources)]
        margins, scales = {"raw": margin_P, "fitted": margin_P}, {"raw": 1.0, "fitted": scale}
        found = report_pairs(margins, self.found.table, rows, scales)
        raw, fitted = found["raw"]["macro"], found["fitted"]["macro"]
        pooled = found["raw"], found["fitted"]
        return {
            "accuracy": raw["accuracy"],
            "balanced": raw["accuracy_length_balanced"],
            "log_loss": raw["log_loss"],
            "log_loss_fitted": fitted["log_loss"],
            "ece": pooled[0]["ece"],
            "ece_floor": pooled[0]["ece_floor"],
            "ece_fitted": pooled[1]["ece"],
            "ece_fitted_floor": pooled[1]["ece_floor"],
            "margin": float(np.nanmean(np.abs(margin_P[rows]))),
            "n": float(len(rows)),
        } | {
            f"balanced.{s}": v["accuracy_length_balanced"]
            for s, v in found["raw"]["per_source"].items()
        }


def cost(trained: Any) -> dict[str, float]:
    """Returns tokens and seconds of training."""
    steps = trained.history
    return {
        "tokens": float(sum(step["tokens"] for step in steps)),
        "seconds": float(sum(step["seconds"] for step in steps)),
    }


def more(options: Options, seed: int) -> dict[str, Any]:
    """MORE against its baselines."""
    config = base(options, seed, FIVE)
    bench = Bench(config, options.work / f"more-{seed}")
    found: dict[str, Any] = {}
    for name in ("mixed", "more"):
        weighting = WeightingConfig(sources=name)
        trained = bench.fit(name, replace(config, weighting=weighting))
        found[name] = bench.report(trained.margin_P, FIVE, FIVE) | cost(trained)
        if name == "more":
            weights = np.array([step["weights"] for step in trained.history])
            found[name] |= {
                f"lambda.{s}": w for s, w in zip(bench.sources, weights.mean(0), strict=True)
            }
    singles = {s: bench.fit(f"single-{s}", config, (s,)) for s in bench.sources}
    own_P = np.full(len(bench.source_P), np.nan)
    for source, trained in singles.items():
        rows = bench.source_P == source
        own_P[rows] = trained.margin_P[rows]
        found[f"single {source}"] = bench.report(trained.margin_P, FIVE, (source,)) | cost(trained)
    found["own source's single"] = bench.report(own_P, FIVE, FIVE)
    standardized = [t.margin_P / np.nanstd(t.margin_P[bench.rows.select]) for t in singles.values()]
    found["mean of singles' scores"] = bench.report(np.mean(standardized, 0), FIVE, FIVE)
    averaged = average(bench, config, [t.folder for t in singles.values()])
    found["mean of singles' weights"] = bench.report(averaged, FIVE, FIVE)
    return found


def average(bench: Bench, config: PreferenceConfig, folders: list[Path]) -> Any:
    """Returns margins of the model whose weights are the mean of some models'."""
    from actors.learner import Learner
    from panoply.train.group import Group

    states = [torch.load(folder / "trained.pt", weights_only=True) for folder in folders]
    learner = Learner(bench.task("average", config), Group())
    learner.weights.restore(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return learner.all_margins(list(bench.rows.scored), as_saved=True)[:, 0]


def haf(options: Options, seed: int) -> dict[str, Any]:
    """HaF-RM's policy loss beside, without and instead of the reward loss."""
    # A policy needs all layers below its language-model head.
    config = base(options, seed, (*CHAT, *AWAY), depth=1.0)
    bench = Bench(config, options.work / f"haf-{seed}")
    losses = {
        "alpha 0 (Bradley-Terry)": LossConfig(),
        "alpha .2": LossConfig(policy="dpo", alpha=0.2),
        "alpha 1": LossConfig(policy="dpo", alpha=1.0),
        "DPO as reward model": LossConfig(policy="dpo", alpha=1.0, reward=0.0),
        "Bradley-Terry + SFT .2": LossConfig(policy="sft", alpha=0.2),
    }
    found: dict[str, Any] = {}
    for name, loss in losses.items():
        trained = bench.fit(name.replace(" ", "-"), replace(config, loss=loss), CHAT)
        found[name] = cost(trained)
        for where, sources in (("in", CHAT), ("out", AWAY)):
            report = bench.report(trained.margin_P, sources, CHAT)
            found[name] |= {f"{where} {key}": value for key, value in report.items()}
    return found


def smoothing(options: Options, seed: int) -> dict[str, Any]:
    """Label noise, and what is done against it, over ten epochs on frozen features."""
    found: dict[str, Any] = {}
    for flipped in (0.0, 0.2, 0.4):
        config = base(options, seed, FIVE)
        config = replace(
            config,
            flipped=flipped,
            trunk=replace(config.trunk, trained="head"),
            schedule=replace(config.schedule, num_epochs=10, head_lr=3e-3),
        )
        bench = Bench(config, options.work / f"smoothing-{flipped:g}-{seed}")
        once = replace(config, schedule=replace(config.schedule, num_epochs=1))
        stopped = replace(config, schedule=replace(config.schedule, keep_best=True, patience=3))
        variants = {
            "ten epochs": config,
            "one epoch": once,
            "early stopping": stopped,
            "label smoothing .1": replace(config, loss=LossConfig(label_smoothing=0.1)),
            "label smoothing .3": replace(config, loss=LossConfig(label_smoothing=0.3)),
            "data smoothing .1": replace(config, loss=LossConfig(smoothing=0.1)),
            "data smoothing .3": replace(config, loss=LossConfig(smoothing=0.3)),
        }
        for name, variant in variants.items():
            trained = bench.fit(name.replace(" ", "-"), variant)
            key = f"{flipped:.0%} flipped, {name}"
            found[key] = bench.report(trained.margin_P, FIVE, FIVE) | cost(trained)
    return found


def setting(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import transformers

    from panoply.hub.backbone import choose_dtype

    return {
        "versions": {m.__name__: str(m.__version__) for m in (torch, transformers)},
        "dtype": str(choose_dtype("auto", torch.device("cpu"))),
        "threads": options.threads,
        "cores": os.cpu_count(),
        **{k: str(getattr(options, k)) for k in ("experiment", "seeds", "pairs", "lr", "head_lr")},
    }


def show(figures: Mapping[str, Any]) -> None:
    """Prints means over the seeds, with the extremes of the first column."""
    from rich.console import Console
    from rich.table import Table

    rows = {name: list(found.values()) for name, found in figures.items() if name != "setting"}
    columns = [c for c in next(iter(rows.values()))[0] if "." not in c]
    table = Table("model", *columns)
    for name, seeds in rows.items():
        cells = [_cell([seed.get(column) for seed in seeds]) for column in columns]
        table.add_row(name, *cells)
    Console(width=220).print(table)


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = float(np.mean(known))
    return f"{mean:,.0f}" if mean > 100 else f"{mean:.3f} [{min(known):.3f}, {max(known):.3f}]"


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.preference"))
