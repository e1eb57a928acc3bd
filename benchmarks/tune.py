"""What sharing a frozen backbone's outputs saves a search: `python -m benchmarks.tune --json FILE`.

`tune_vs_recompute`: seconds of 8 trials of `jobs.tune_more` that each compute what lies below the
head, over seconds of the same 8 trials that find it computed once, that one pass included.

Both sides load the model, train, look and score in the same way, one after the other in this
process, so neither pays for the start of processes. Their losses must be equal. Seconds are CPU
seconds on one thread, so that other work on the machine counts little. The ratio grows with the
length of a pass beside a trial's own work and is at most the number of trials.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks import harness
from benchmarks.harness import over_repeats, print_figures, run, setting, write_figures
from panoply.config import Rendering
from panoply.config.armorm import SyntheticConfig
from panoply.config.preference import HeadOnly, TrainedBackboneConfig
from panoply.config.tune import Point, TuneConfig, paper_point

SOURCES = ("hh_helpful", "hh_harmless", "alpacaeval_gpt4", "ukp_convarg", "truthfulqa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """What is run."""

    data: Path = Path("../shared/data")
    """Folder with `pairs/*.parquet`; planted pairs where there is none."""
    pairs: int = 24
    """Pairs of each of five sources."""
    trials: int = 8
    repeats: int = 1
    """Repeats of both sides in turn."""


def main(options: Options) -> None:
    """Times both sides and prints the figure.

    Raises:
        RuntimeError: both sides do not train the same models.
    """
    import torch

    from panoply.hub.backbone.pretrained import silence_libraries

    silence_libraries()
    torch.set_num_threads(1)
    timed: list[dict[str, float]] = []
    for _ in range(options.repeats):
        folder = Path(tempfile.mkdtemp())
        try:
            timed.append(compare(options, folder))
        finally:
            shutil.rmtree(folder)
    ratios = [found["own"] / found["shared"] for found in timed]
    figures = {"tune_vs_recompute": over_repeats(ratios, seconds=timed), "setting": about(options)}
    write_figures(options.json, figures)
    print_figures(figures, ("ratio", "min", "max"), {"tune_vs_recompute": "bar: >= 5"})


def search(options: Options) -> TuneConfig:
    """Returns the search whose trials are timed: the whole backbone, frozen."""
    files = tuple(str(options.data / "pairs" / f"{name}.parquet") for name in SOURCES)
    real = all(Path(file).exists() for file in files)
    return TuneConfig(
        num_trials=options.trials,
        pairs=files if real else (),
        planted=None if real else SyntheticConfig(num_prompts=options.pairs),
        max_pairs_per_source=options.pairs if real else 0,
        backbone=TrainedBackboneConfig(
            trained=HeadOnly(),
            rendering=Rendering(max_prompt_tokens=128, max_response_tokens=96),
        ),
    )


def points(config: TuneConfig, defaults: Point) -> list[Point]:
    """Returns the trials of random search, the defaults first."""
    import optuna

    from workflows.tune_more import sampler, space

    study = optuna.create_study(sampler=sampler("random", config))
    drawn = [study.ask({**space(config)}).params for _ in range(config.num_trials - 1)]
    return [defaults, *(cast(Point, params) for params in drawn)]


def compare(options: Options, folder: Path) -> dict[str, float]:
    """Returns the CPU seconds of the trials with inputs of their own, and with shared ones."""
    from actors.reward_trainer import RewardTrainer
    from actors.trial import fill_cache, trial_task
    from panoply.preference.distributed import Group
    from panoply.report.progress import RunLogger
    from workflows.tune_more import prepare

    config = search(options)
    base, _ = prepare(config, folder, RunLogger())
    num_sources = int(base.pairs.source_P[base.pairs.train].max()) + 1
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for side in ("shared", "own"):
        began, losses[side] = time.process_time(), []
        task = replace(base, folder=str(folder / side), store=str(folder / "store"))
        if side == "shared":
            fill_cache(task)
        chosen = points(config, paper_point(config, num_sources, len(base.pairs.train)))
        for number, point in enumerate(chosen):
            store = folder / ("store" if side == "shared" else f"store-{number}")
            run = replace(trial_task(point, task, config), store=str(store))
            RewardTrainer(run, Group()).run()
            done = json.loads((Path(run.folder) / "done.json").read_text())
            losses[side].append(done["history"][-1]["select_loss"])
        seconds[side] = time.process_time() - began
        print(f"{side}: {seconds[side]:.0f} s", flush=True)
    if losses["own"] != losses["shared"]:
        raise RuntimeError(f"the trials differ: {losses}")
    return seconds


def about(options: Options) -> dict[str, Any]:
    """Returns versions and sizes."""
    import optuna
    import torch

    from panoply.hub.backbone.pretrained import choose_dtype

    return setting(
        *(torch, optuna),
        dtype=str(choose_dtype("auto", torch.device("cpu"))),
        threads=1,
        pairs="real" if search(options).planted is None else "planted",
        pairs_per_source=options.pairs,
        trials=options.trials,
        repeats=options.repeats,
    )


if __name__ == "__main__":
    run(main, Options)
