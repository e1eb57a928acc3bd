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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import tyro

from benchmarks.preference_models import Bench, Test, cost
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
    pairs: int = 300
    """Most pairs of a source; 70 % are trained on."""
    test_pairs: int = 120
    """Most pairs of a source that are tested on: of the *test* part of all its pairs."""
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


def more(options: Options, seed: int) -> dict[str, Any]:
    """MORE against its baselines."""
    config = base(options, seed, FIVE)
    bench = Bench(config, options.work / f"more-{seed}")
    test = Test(config, options.test_pairs, bench.folder)
    found: dict[str, Any] = {}
    for name in ("mixed", "more"):
        weighting = WeightingConfig(sources=name)
        trained = bench.fit(name, replace(config, weighting=weighting))
        found[name] = bench.report(test, trained, FIVE, FIVE) | cost(trained)
        if name == "more":
            weights = np.array([step["weights"] for step in trained.history]).mean(0)
            named = zip(bench.sources, weights.tolist(), strict=True)
            found[name] |= {f"lambda.{source}": weight for source, weight in named}
    singles = {s: bench.fit(f"single-{s}", config, (s,)) for s in bench.sources}
    margins = {source: test.score(trained) for source, trained in singles.items()}
    source_P, own_P = test.table.source_P[test.rows], np.zeros(len(test.rows))
    for source, trained in singles.items():
        scale = bench.scale(trained.margin_P, (source,))
        found[f"single {source}"] = test.report(scale, margins[source], FIVE) | cost(trained)
        own_P[source_P == source] = margins[source][source_P == source]
    together = {s: t.margin_P for s, t in singles.items()}
    known_P = np.select([bench.source_P == s for s in together], list(together.values()))
    found["own source's single"] = test.report(bench.scale(known_P, FIVE), own_P, FIVE)
    spread = {s: float(np.nanstd(t.margin_P)) for s, t in singles.items()}
    mean_P = np.mean([margins[s] / spread[s] for s in singles], axis=0)
    known_P = np.mean([together[s] / spread[s] for s in singles], axis=0)
    found["mean of singles' scores"] = test.report(bench.scale(known_P, FIVE), mean_P, FIVE)
    states = [torch.load(t.folder / "trained.pt", weights_only=True) for t in singles.values()]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    # No temperature: that would need its margins on *calibrate*.
    found["mean of singles' weights"] = test.report(1.0, test.score_state(mean), FIVE)
    return found


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
    trained = {
        name: bench.fit(name.replace(" ", "-"), replace(config, loss=loss), CHAT)
        for name, loss in losses.items()
    }
    test = Test(config, options.test_pairs, bench.folder, policy=True)
    found: dict[str, Any] = {}
    for name, model in trained.items():
        state = torch.load(model.folder / "trained.pt", weights_only=True)
        margin_P = test.score_state(state, 0.0 if losses[name].reward else losses[name].beta)
        scale = bench.scale(model.margin_P, CHAT)
        found[name] = cost(model)
        for where, sources in (("in", CHAT), ("out", AWAY)):
            report = test.report(scale, margin_P, sources)
            found[name] |= {f"{where} {key}": value for key, value in report.items()}
    return found


def smoothing(options: Options, seed: int) -> dict[str, Any]:
    """Label noise, and what is done against it, over ten epochs on frozen features."""
    found: dict[str, Any] = {}
    test: Test | None = None
    for flipped in (0.0, 0.2, 0.4):
        config = base(options, seed, FIVE)
        config = replace(
            config,
            flipped=flipped,
            trunk=replace(config.trunk, trained="head"),
            schedule=replace(config.schedule, num_epochs=10, head_lr=3e-3),
        )
        bench = Bench(config, options.work / f"smoothing-{flipped:g}-{seed}")
        test = test or Test(config, options.test_pairs, bench.folder)
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
            found[key] = bench.report(test, trained, FIVE, FIVE) | cost(trained)
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
        **{
            k: str(getattr(options, k))
            for k in ("experiment", "seeds", "pairs", "test_pairs", "lr", "head_lr")
        },
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
