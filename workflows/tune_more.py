"""Search of MORE's weighting with Ray Tune, from pairs to the run to take next, top to bottom.

    pairs -> token trees -> activations below the trained part, once -> TPE under ASHA, and random
    search under ASHA -> the best of each and the paper's defaults, on *test* with a temperature

What a reader of MORE (arXiv 2312.07401) or of Ray Tune may not expect:

1. A trial trains inside its own process. A trial that started a `TorchTrainer` would hold one
   placement group more, which stays reserved when ASHA stops the trial on a cluster without
   dashboard, and later trials starve. Trials are many and small: they are the parallel part.
2. The first trial of both searches is the defaults (`panoply.config.tune.paper_point`). Random
   search has the same seed, the same scheduler and as many trials; a point that both choose is
   trained once. Only trials that went all the way can win.
3. *select* chooses: the least of many losses there is too good to be true. *test* decides, where
   only the winners and the defaults are measured.
4. After a kill, trials that ended are never trained again, and others resume from their own
   checkpoints. With one trial at a time the search as a whole is what it would have
   been; with more, results reach TPE and ASHA in another order, as they do in any two runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
import ray
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from actors.reward_trainer import TrainTask
from actors.trial import eval_results, fill_cache, finish_trial, train_trial, trial_task
from panoply.config import as_dict
from panoply.config.preference import Mixed, More, Normalizer, PreferenceConfig
from panoply.config.tune import Point, TuneConfig, command_words, paper_point
from panoply.files import write_json
from panoply.hub.backbone.pretrained import resolve
from panoply.report.figures import picture
from panoply.report.progress import RunLogger
from panoply.report.trials import Trial, best, cost, search_curves
from workflows.cluster.polled_bar import polled_bar
from workflows.cluster.preference_results import TrainedRun, calibrate, measure
from workflows.cluster.prepare_pairs import Preferences, read_pairs, tokenize, training_rows
from workflows.cluster.ray_cluster import await_workers, connect, store_root
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers

SEARCHES = ("tpe", "random")
DEFAULTS = "defaults"
STARTUP_SHARE = 3
"""Trials for each one that TPE draws at random at first, at most 10, as random search does."""
EQUAL_MIXING_SEARCHED = (
    "weighting: two sources have the weight 1/2 in every step under the normalizer l2, so momentum "
    "and interpolation are searched under the other normalizers alone"
)
MAX_FAILURES = 2
"""Processes that one trial may lose; it resumes from its checkpoint."""
TUNE_ENV = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
}
"""Settings of Ray Tune: no tables and files of its own; Ctrl-C ends the command; the search is
saved as it goes."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Results of both searches."""

    metrics: dict[str, Any]
    trials: list[Trial]
    next_words: list[str]
    """Words behind the recipe in the command of the run to take next."""


@one_writer
def run_tune_more(config: TuneConfig, recipe: PreferenceConfig, logger: RunLogger) -> SearchResult:
    """Runs the search; its results stand in OUT too.

    Args:
        config: the search.
        recipe: the recipe that the command of the best run starts from.
        logger: logger of the progress.

    Raises:
        ValueError, FileNotFoundError: unusable input, before anything expensive starts.
        RunError: no trial of a search came to its end.
    """
    out = run_folder(config.out)
    resolve(config.backbone.model)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    base, preferences = prepare(config, out, logger)
    tags = {"method": "more", "data": str(preferences.summary["id"])}
    data = {"pairs": {**preferences.summary, "files": config.pairs}}
    with trackers.run(as_dict(config), tags, logger, data=data):
        return search_and_measure(config, recipe, base, preferences, out, logger)


def search_and_measure(
    config: TuneConfig,
    recipe: PreferenceConfig,
    base: TrainTask,
    preferences: Preferences,
    out: Path,
    logger: RunLogger,
) -> SearchResult:
    """Runs both searches on pairs that are read; leaves all of them in the run folder.

    Raises:
        RunError: no trial of a search came to its end.
    """
    defaults = paper_point(config, num_sources_of(base), len(base.pairs.train))
    connect(math.ceil(config.max_concurrent * config.cpus))
    bundle = {"CPU": config.cpus, "GPU": config.gpus}
    await_workers(config.max_concurrent, bundle, config.wait_minutes, logger)
    logger.stage(1, 3, "compute activations below the trained part")
    with logger.bar("activations below the trained part", 1) as advance:
        run_remote(fill_cache, base, config)
        advance(1)

    trials: list[Trial] = []
    logger.stage(2, 3, "search")
    for name in SEARCHES:
        trials += search(name, config, base, defaults, out / "search", logger)
    logger.stage(3, 3, "finish the defaults and measure the winners")
    winners = {name: best(trials, name) for name in SEARCHES}
    tasks = {name: trial_task(trial.point, base, config) for name, trial in winners.items()}
    tasks[DEFAULTS] = trial_task(defaults, base, config)
    run_remote(finish_trial, tasks[DEFAULTS], config)  # where ASHA stopped it

    trained = {name: TrainedRun.read(Path(task.folder)) for name, task in tasks.items()}
    scales, margins = calibrate(trained, preferences)
    metrics = measure(margins, scales, preferences)
    metrics["select_loss"] = {
        name: eval_results(trained[name].history, task)[-1]["select_loss"]
        for name, task in tasks.items()
    }
    metrics["search"] = {name: cost(trials, name) for name in SEARCHES}
    metrics["points"] = {name: dict(trial.point) for name, trial in winners.items()}
    metrics["points"][DEFAULTS] = dict(defaults)
    metrics["data"] = {"pairs": dict(preferences.summary)}
    metrics["git_commit"] = git_commit()
    chosen = min(metrics["select_loss"], key=metrics["select_loss"].__getitem__)
    words = next_words(tasks[chosen].config, recipe)
    write_json(out / "metrics.json", metrics)
    write_json(out / "trials.json", {"trials": [asdict(trial) for trial in trials]})
    write_json(
        out / "best.json",
        {
            "from": chosen,
            "select_loss": metrics["select_loss"][chosen],
            "flags": words,
            "config": as_dict(tasks[chosen].config),
        },
    )
    curves = search_curves(trials, metrics["select_loss"][DEFAULTS])
    (out / "search.png").write_bytes(picture(curves))
    return SearchResult(metrics, trials, words)


def prepare(config: TuneConfig, out: Path, logger: RunLogger) -> tuple[TrainTask, Preferences]:
    """Reads and renders the pairs; returns the run that is searched, and the pairs.

    Raises:
        ValueError: a single source, whose weight is always 1.
    """
    preferences = read_pairs(config, out / "data", logger)
    claim(out, config, {"pairs": preferences.summary["id"]})
    path = out / "data" / "tokens.parquet"
    tokens, _ = tokenize(config, preferences, path, logger)
    # Trials choose the pairs of a step, on which the rows do not depend, so it need not fit yet.
    run = config.run_config()
    rows, sources, _ = training_rows(replace(run, weighting=Mixed()), preferences, tokens)
    if len(sources) < 2:
        raise ValueError(
            f"MORE weighs sources against each other, and these pairs have {sources!r}: "
            "add files of other sources to `--pairs`, or take `jobs.preference pairs`"
        )
    num_train, num_pairs = len(rows.train), len(rows.source_P)
    logger.info(f"data: {num_train:,} of {num_pairs:,} pairs to train on: {', '.join(sources)}")
    if More(normalizer="l2").is_equal_mixing(len(sources)):
        logger.info(EQUAL_MIXING_SEARCHED)
    task = TrainTask(
        config=run,
        pairs=rows,
        tokens=str(path),
        names=preferences.names,
        folder=str(out / "trials"),
        store=store_root(config.store),
        threads=max(1, int(config.cpus)),
    )
    return task, preferences


def num_sources_of(base: TrainTask) -> int:
    """Returns the number of sources of the pairs to train on."""
    return int(base.pairs.source_P[base.pairs.train].max()) + 1


def search(
    name: str, config: TuneConfig, base: TrainTask, defaults: Point, folder: Path, logger: RunLogger
) -> list[Trial]:
    """Runs or resumes a search; returns its trials in the order of their start."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    resources = {"CPU": config.cpus, "GPU": config.gpus}
    trainable = tune.with_resources(
        tune.with_parameters(train_trial, task=base, search=config), resources
    )
    path = str(folder / name)
    # Without a snapshot Ray Tune would restore a search of one trial.
    is_begun = any((folder / name).glob("experiment_state-*.json"))

    def trials_begun() -> int:
        return sum(entry.is_dir() for entry in (folder / name).glob("train_trial_*"))

    bar = polled_bar(logger, f"trials of search {name}", config.num_trials, trials_begun)
    with tune_settings(), bar:
        if is_begun and tune.Tuner.can_restore(path):
            tuner = tune.Tuner.restore(path, trainable, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(
                        partial(suggest, config=config, num_sources=num_sources_of(base)),
                        metric="select_loss",
                        mode="min",
                        points_to_evaluate=[dict(defaults)],
                        sampler=sampler(name, config),
                    ),
                    scheduler=ResumedASHA(
                        time_attr="percent",
                        metric="select_loss",
                        mode="min",
                        max_t=100,
                        grace_period=100 * config.grace // config.num_evaluations,
                        reduction_factor=config.reduction,
                    ),
                    num_samples=config.num_trials,
                    max_concurrent_trials=config.max_concurrent,
                    reuse_actors=True,  # a process takes as long to start as most trials to train
                ),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                    verbose=0,
                ),
            )
        grid = tuner.fit()
    results = sorted((grid[i] for i in range(len(grid))), key=place)
    return [read_trial(name, number, result) for number, result in enumerate(results)]


def place(result: tune.Result) -> int:
    """Returns the place of a trial in its search, by the name of its folder.

    After a restart Ray Tune lists the latest trials first.
    """
    return int(Path(result.path).name.removeprefix("train_trial_").split("_")[1])


class ResumedASHA(ASHAScheduler):
    """ASHA that is told again, after a restart, what trials that ended have reported.

    Ray Tune saves trials and not their scheduler, which would compare the next ones with nothing. A
    trial that had not ended reports all of its evaluations again.
    """

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Takes a trial, and the evaluations of one that ended before this process."""
        super().on_trial_add(tune_controller, trial)
        if trial.status == TuneTrial.TERMINATED:
            for percent, loss in trial.last_result.get("curve", ()):
                result = {"percent": percent, "select_loss": loss}
                self.on_trial_result(tune_controller, trial, result)


def space(config: TuneConfig) -> dict[str, CategoricalDistribution | FloatDistribution]:
    """Returns the space as Optuna's distributions, the normalizer first."""
    ranges = config.space
    distributions: dict[str, CategoricalDistribution | FloatDistribution] = {
        "normalizer": CategoricalDistribution(ranges.normalizers),
        "momentum": FloatDistribution(*ranges.momentum, log=True),
        "interpolation": FloatDistribution(*ranges.interpolation),
        "pairs_per_source": CategoricalDistribution(ranges.pairs_per_source),
    }
    for name in config.rates:
        low, high = getattr(ranges, name)
        distributions[name] = FloatDistribution(low, high, log=True)
    return distributions


def suggest(trial: optuna.Trial, config: TuneConfig, num_sources: int) -> dict[str, float]:
    """Suggests a point of the space, and returns those of its numbers that are not searched.

    Where the weights of two sources are 1/2 in every step (`More.is_equal_mixing`), momentum and
    rho change nothing, and stay the defaults'.
    """
    fixed: dict[str, float] = {}
    for name, distribution in space(config).items():
        if name in fixed:
            continue
        match distribution:
            case CategoricalDistribution():
                value = trial.suggest_categorical(name, distribution.choices)
            case FloatDistribution():
                ends = distribution.low, distribution.high
                value = trial.suggest_float(name, *ends, log=distribution.log)
        if name == "normalizer":
            weighting = More(normalizer=cast(Normalizer, value))
            if weighting.is_equal_mixing(num_sources):
                fixed = {
                    "momentum": weighting.momentum,
                    "interpolation": weighting.interpolation,
                }
    return fixed


def sampler(name: str, config: TuneConfig) -> BaseSampler:
    """Returns the sampler of points: the tree-structured Parzen estimator, or chance."""
    if name == "random":
        return RandomSampler(config.seed)
    startup = min(10, max(1, config.num_trials // STARTUP_SHARE))
    return TPESampler(n_startup_trials=startup, seed=config.seed)


def read_trial(name: str, number: int, result: tune.Result) -> Trial:
    """Returns the outcome of a trial."""
    last: Mapping[str, Any] = result.metrics or {}
    reason: str | None = last.get("diverged")
    if result.error is not None:
        state, reason = "failed", str(result.error).strip().splitlines()[-1]
    else:
        state = "diverged" if reason else "finished" if last.get("finished") else "stopped"
    loss = last.get("select_loss", math.inf)
    return Trial(
        search=name,
        number=number,
        state=state,
        point=cast(Point, result.config),
        select_loss=loss if math.isfinite(loss) else None,
        share=last["percent"] / 100 if "percent" in last else None,
        losses=tuple(last.get("losses", ())),
        reason=reason,
    )


def next_words(run: PreferenceConfig, recipe: PreferenceConfig) -> list[str]:
    """Returns the words that turn a recipe into a run; workers and folders stay the recipe's."""
    run = replace(
        run,
        out=recipe.out,
        num_workers=recipe.num_workers,
        experiment=recipe.experiment,
        report_to=recipe.report_to,
    )
    return command_words(as_dict(run), as_dict(recipe))


def run_remote(work: Callable[[TrainTask], None], task: TrainTask, config: TuneConfig) -> None:
    """Runs a function on the cluster with the resources of a trial, and waits for it."""
    remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus)(work)
    ray.get(remote.remote(task))


@contextmanager
def tune_settings() -> Generator[None]:
    """Sets the environment variables that Ray Tune reads."""
    before = {name: os.environ.get(name) for name in TUNE_ENV}
    os.environ.update(TUNE_ENV)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
