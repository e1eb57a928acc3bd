"""Do the papers' claims hold here? `python -m evidence.preference EXPERIMENT --json FILE`.

`more`: MORE, plain mixing, single-source models and their averages, on five sources.
`haf`: HaF-RM's alpha in {0, .2, 1}, DPO as reward model, BT + SFT, in and out of domain.
`rates`: the rates among which that of `haf` was chosen on *select*, Bradley-Terry alone.
`smoothing`: iterative data smoothing against early stopping and label smoothing, under flipped
labels, on frozen features and several epochs.

Same pairs, same steps, same rates for all that is compared; three seeds, which move the split and
every initialization. A finished model is not trained again: the same command goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import tyro

from evidence.preference_models import Bench, Test, cost
from evidence.preference_results import Seed, difference
from panoply.config import Rendering
from panoply.config.preference import (
    DPO,
    SFT,
    HeadOnly,
    LastLayers,
    LossConfig,
    Mixed,
    More,
    PreferenceConfig,
    ScheduleConfig,
    TrainedBackboneConfig,
)

FIVE = ("hh_helpful", "hh_harmless", "alpacaeval_gpt4", "ukp_convarg", "truthfulqa")
INSIDE: tuple[str, ...] = ("truthfulqa",)
"""What `haf` trains on: short, and a model of this size learns it."""
OUTSIDE: tuple[str, ...] = ("xstest", "hh_harmless", "hh_helpful", "alpacaeval_gpt4")
Experiment: TypeAlias = Literal["more", "haf", "rates", "smoothing"]
SIZES: dict[Experiment, tuple[int, int]] = {
    "more": (300, 120),
    "haf": (600, 40),
    "rates": (1000, 0),
    "smoothing": (1000, 120),
}
"""Most pairs of a source, and most that are tested on, as recorded."""


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
    pairs: int = 0
    """Most pairs of a source; 70 % are trained on. 0: as recorded."""
    test_pairs: int = 0
    """Most pairs of a source that are tested on, of the *test* part of all its pairs; five times as
    many of what `haf` trains on. 0: as recorded."""
    threads: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """`pairs` and `test_pairs`."""
        pairs, test_pairs = SIZES[self.experiment]
        return self.pairs or pairs, self.test_pairs or test_pairs


def main(options: Options) -> None:
    """Runs an experiment and writes its figures after every seed."""
    from panoply.hub.backbone.backbone import quiet
    from workflows.cluster.tracking import write_json

    quiet()
    torch.set_num_threads(options.threads)
    run = {"more": more, "haf": haf, "rates": rates, "smoothing": smoothing}[options.experiment]
    figures: dict[str, Any] = {"setting": setting(options), "models": {}, "differences": {}}
    seeds: list[Seed] = []
    for number in options.seeds:
        seed = run(options, number)
        seeds.append(seed)
        for name, found in seed.figures.items():
            figures["models"].setdefault(name, {})[str(number)] = found
        for part in seed.parts:
            figures["differences"] |= {
                f"{part}{a} - {b}": difference(seeds, a, b, part) for a, b in seed.compared
            }
        write_json(options.json, figures)
    show(figures)


def base(
    options: Options, seed: int, sources: tuple[str, ...], backbone: TrainedBackboneConfig
) -> PreferenceConfig:
    """Returns the run that all others are variants of."""
    return PreferenceConfig(
        pairs=tuple(str(options.data / "pairs" / f"{source}.parquet") for source in sources),
        max_pairs_per_source=options.sizes[0],
        seed=seed,
        backbone=backbone,
        schedule=ScheduleConfig(pairs_per_step=20, lr=1e-4, head_lr=1e-3),
        num_workers=0,
        store=str(options.work / "store"),
    )


UPPER = TrainedBackboneConfig(
    trained=LastLayers(),
    depth=0.6,
    rendering=Rendering(max_prompt_tokens=128, max_response_tokens=96),
)
HEAD = replace(UPPER, trained=HeadOnly())
SPEAKING = replace(
    UPPER, depth=1.0, rendering=Rendering(max_prompt_tokens=96, max_response_tokens=64)
)
"""A policy needs all layers below its language-model head."""


def more(options: Options, number: int) -> Seed:
    """MORE against its baselines."""
    config = base(options, number, FIVE, UPPER)
    bench = Bench(config, options.work / f"more-{number}")
    test = Test(config, dict.fromkeys(FIVE, options.sizes[1]), bench.folder / "test")
    seed = Seed(test.table, test.rows, {"": FIVE})
    for weighting in (Mixed(), More()):
        name = weighting.kind
        trained = bench.fit(name, replace(config, weighting=weighting))
        told = cost(trained)
        if name == "more":
            weights = np.array([step["source_weights"] for step in trained.history]).mean(0)
            named = zip(bench.sources, weights.tolist(), strict=True)
            told |= {f"lambda.{source}": weight for source, weight in named}
        seed.add(name, test.score(trained.folder), bench.scale(trained.margin_P, FIVE), told)
    singles = {s: bench.fit(f"single-{s}", config, (s,)) for s in bench.sources}
    margins = {source: test.score(trained.folder) for source, trained in singles.items()}
    source_P, own_P = test.table.source_P[test.rows], np.zeros(len(test.rows))
    for source, trained in singles.items():
        scale = bench.scale(trained.margin_P, (source,))
        seed.add(f"single {source}", margins[source], scale, cost(trained))
        own_P[source_P == source] = margins[source][source_P == source]
    together = {s: t.margin_P for s, t in singles.items()}
    known_P = np.select([bench.source_P == s for s in together], list(together.values()))
    seed.add("own source's single", own_P, bench.scale(known_P, FIVE))
    spread = {s: float(np.std(known_P[bench.calibrate(FIVE)])) for s, known_P in together.items()}
    mean_P = np.mean([margins[s] / spread[s] for s in singles], axis=0)
    known_P = np.mean([together[s] / spread[s] for s in singles], axis=0)
    seed.add("mean of singles' scores", mean_P, bench.scale(known_P, FIVE))
    states = [torch.load(t.folder / "trained.pt", weights_only=True) for t in singles.values()]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    folder = bench.folder / "mean-of-singles"
    folder.mkdir(exist_ok=True)
    torch.save(mean, folder / "trained.pt")
    # No temperature: that would need its margins on *calibrate*.
    seed.add("mean of singles' weights", test.score(folder), 1.0)
    averages = ("mean of singles' scores", "mean of singles' weights")
    seed.compared = [
        ("more", "mixed"),
        ("own source's single", "mixed"),
        *((name, "own source's single") for name in averages),
        *((name, "mixed") for name in averages),
    ]
    return seed


RATES = ((1e-4, 1e-3), (1e-4, 3e-3), (3e-4, 1e-3), (3e-4, 3e-3), (1e-3, 1e-3))
"""Peak rates of the backbone and of the head."""
CHOSEN = (3e-4, 3e-3)
"""The best of them on *select* of seed 0."""


def haf_config(options: Options, number: int, rates: tuple[float, float]) -> PreferenceConfig:
    """Returns Bradley-Terry in steps of ten pairs."""
    config = base(options, number, INSIDE, SPEAKING)
    lr, head_lr = rates
    schedule = replace(config.schedule, pairs_per_step=10, lr=lr, head_lr=head_lr)
    return replace(config, schedule=schedule)


def rates(options: Options, number: int) -> Seed:
    """Bradley-Terry alone at a few rates: what `haf` takes is the best on *select*."""
    bench = Bench(haf_config(options, number, RATES[0]), options.work / f"rates-{number}")
    seed = Seed(bench.found.table, np.arange(0), {})
    for lr, head_lr in RATES:
        trained = bench.fit(f"{lr:g}-{head_lr:g}", haf_config(options, number, (lr, head_lr)))
        seed.figures[f"backbone {lr:g}, head {head_lr:g}"] = selected(trained) | cost(trained)
    return seed


def selected(trained: Any) -> dict[str, float]:
    """Returns the log loss on *select* at the end, and after each look."""
    looks = [step["select_loss"] for step in trained.history if "select_loss" in step]
    return {"select": looks[-1], **{f"select.{i}": loss for i, loss in enumerate(looks, 1)}}


def haf(options: Options, number: int) -> Seed:
    """HaF-RM's policy loss beside, without and instead of the reward loss."""
    config = haf_config(options, number, CHOSEN)
    bench = Bench(config, options.work / f"haf-{number}")
    losses = {
        "alpha 0": LossConfig(),
        "alpha .2": LossConfig(policy=DPO(alpha=0.2)),
        "alpha 1": LossConfig(policy=DPO(alpha=1.0)),
        "DPO as reward model": LossConfig(policy=DPO(alpha=1.0), reward=0.0),
        "SFT .2": LossConfig(policy=SFT(alpha=0.2)),
    }
    everywhere = base(options, number, (*INSIDE, *OUTSIDE), SPEAKING)
    few = options.sizes[1]
    most = dict.fromkeys(INSIDE, 5 * few) | dict.fromkeys(OUTSIDE, few)
    test = Test(everywhere, most, bench.folder / "test", policy=True)
    seed = Seed(test.table, test.rows, {"in ": INSIDE, "out ": OUTSIDE})
    reference: Path | None = None
    for name, loss in losses.items():
        variant = replace(config, loss=loss)
        policy = loss.policy if isinstance(loss.policy, DPO) else None
        known = reference if policy else None
        trained = bench.fit(name.replace(" ", "-"), variant, reference=known)
        if policy:
            reference = reference or trained.folder / "reference.npy"
        margin_P = test.score(trained.folder, policy.beta if policy and not loss.reward else 0.0)
        scale = bench.scale(trained.margin_P, INSIDE)
        seed.add(name, margin_P, scale, selected(trained) | cost(trained))
    seed.compared = [(name, "alpha 0") for name in losses if name != "alpha 0"]
    seed.compared += [("alpha .2", "SFT .2"), ("alpha .2", "DPO as reward model")]
    seed.compared += [("alpha 1", "DPO as reward model")]
    return seed


def smoothing(options: Options, number: int) -> Seed:
    """Label noise, and what is done against it, over six epochs on frozen features."""
    config = base(options, number, FIVE, HEAD)
    config = replace(config, schedule=replace(config.schedule, num_epochs=6, head_lr=3e-3))
    folder = options.work / f"smoothing-{number}" / "test"
    test = Test(config, dict.fromkeys(FIVE, options.sizes[1]), folder)
    seed = Seed(test.table, test.rows, {"": FIVE})
    stopped = replace(config.schedule, keep_best=True, patience=2)
    variants = {
        "one epoch": replace(config, schedule=replace(config.schedule, num_epochs=1)),
        "six epochs": config,
        "early stopping": replace(config, schedule=stopped),
    }
    for share in (0.1, 0.3):
        loss = LossConfig(label_smoothing=share)
        variants[f"label smoothing {share:g}"] = replace(config, loss=loss)
    for share in (0.1, 0.3, 0.5):
        variants[f"data smoothing {share:g}"] = replace(config, loss=LossConfig(smoothing=share))
    for flipped in (0.0, 0.2, 0.4):
        folder = options.work / f"smoothing-{flipped:g}-{number}"
        noisy = {name: replace(variant, flipped=flipped) for name, variant in variants.items()}
        bench = Bench(noisy["six epochs"], folder)
        for name, variant in noisy.items():
            trained = bench.fit(name.replace(" ", "-"), variant)
            scale = bench.scale(trained.margin_P, FIVE)
            told = selected(trained) | cost(trained)
            seed.add(f"{flipped:.0%} {name}", test.score(trained.folder), scale, told)
        compare_smoothing(seed, f"{flipped:.0%}", list(variants))
    return seed


def compare_smoothing(seed: Seed, noise: str, names: Sequence[str]) -> None:
    """Adds the strength of both smoothings that is the best on *select*, and what is compared."""
    for kind in ("label smoothing", "data smoothing"):
        known = [f"{noise} {name}" for name in names if name.startswith(kind)]
        best = min(known, key=lambda name: seed.figures[name]["select"])
        chosen = f"{noise} {kind}, chosen"
        seed.figures[chosen] = seed.figures[best]
        seed.margins[chosen], seed.scales[chosen] = seed.margins[best], seed.scales[best]
    ours = f"{noise} data smoothing, chosen"
    rivals = ("one epoch", "six epochs", "early stopping", "label smoothing, chosen")
    seed.compared += [(ours, f"{noise} {rival}") for rival in rivals]
    seed.compared.append((f"{noise} six epochs", f"{noise} one epoch"))


def setting(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import transformers

    from panoply.hub.backbone.backbone import choose_dtype

    return {
        "versions": {m.__name__: str(m.__version__) for m in (torch, transformers)},
        "dtype": str(choose_dtype("auto", torch.device("cpu"))),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "experiment": options.experiment,
        "seeds": options.seeds,
        "pairs, test_pairs": options.sizes,
    }


def show(figures: Mapping[str, Any]) -> None:
    """Prints means over the seeds with the extremes, and the differences with their intervals."""
    from rich.console import Console
    from rich.table import Table

    models, differences = figures["models"], figures["differences"]
    columns = [c for c in next(iter(next(iter(models.values())).values())) if "." not in c]
    table = Table("model", *columns)
    for name, seeds in models.items():
        table.add_row(name, *(_cell([s.get(c) for s in seeds.values()]) for c in columns))
    console = Console(width=320)
    console.print(table)
    columns = list(next(iter(differences.values()), {}))
    if not columns:
        return
    table = Table("difference, 95 %", *columns)
    for name, found in differences.items():
        ends = [(found[c]["value"], *found[c]["ci95"]) for c in columns]
        table.add_row(name, *(f"{at:+.3f} [{low:+.3f}, {high:+.3f}]" for at, low, high in ends))
    console.print(table)


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = float(np.mean(known))
    return f"{mean:,.0f}" if mean > 100 else f"{mean:.3f} [{min(known):.3f}, {max(known):.3f}]"


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m evidence.preference"))
