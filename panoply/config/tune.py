"""Settings of a search over MORE's weighting: its space, its trials, the paper's point in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NotRequired, TypedDict, get_args

from panoply.config import require
from panoply.config.preference import (
    HeadOnly,
    More,
    Normalizer,
    PairTrainingConfig,
    PreferenceConfig,
)
from panoply.config.resume import NO_EFFECT

PAPER_PAIRS = 16
"""Pairs of a source in a step of the paper."""
LEAST_STEPS = 20
"""Fewest steps of a run at the defaults: on little data, 16 pairs a source leave a handful."""


class Point(TypedDict):
    """Hyperparameters of a trial."""

    normalizer: Normalizer
    momentum: float
    interpolation: float
    pairs_per_source: int
    head_lr: float
    lr: NotRequired[float]
    """Peak learning rate of the backbone; absent where no backbone is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Ranges that are searched; the defaults must lie inside, and equal ends fix a number."""

    normalizers: tuple[Normalizer, ...] = ("none", "l2", "loss", "loss+")
    """Scalings of a source's gradient."""
    momentum: tuple[float, float] = (0.05, 1.0)
    """Weight of the newest gradient in its running mean, on a logarithmic scale."""
    interpolation: tuple[float, float] = (0.0, 1.0)
    """rho between equal source weights and the minimum norm."""
    pairs_per_source: tuple[int, ...] = (4, 8, 16, 32)
    """Pairs of each source in a step; the number of epochs stays, so fewer mean more steps."""
    head_lr: tuple[float, float] = (1e-4, 1e-2)
    """Peak learning rate of the head; on a logarithmic scale."""
    lr: tuple[float, float] = (1e-5, 1e-3)
    """Peak learning rate of the backbone, on a logarithmic scale; not searched if it is frozen."""

    def __post_init__(self) -> None:
        allowed = get_args(Normalizer)
        named = set(self.normalizers) <= set(allowed)
        require(named, "space.normalizers", self.normalizers, f"some of {allowed}")
        require("l2" in self.normalizers, "space.normalizers", self.normalizers, "with 'l2'")
        low, high = self.momentum
        holds = 0 < low <= 0.99 <= high <= 1
        require(holds, "space.momentum", self.momentum, "in (0, 1], low to high, around 0.99")
        low, high = self.interpolation
        holds = 0 <= low <= high == 1
        require(holds, "space.interpolation", self.interpolation, "in [0, 1], low to high, up to 1")
        holds = bool(self.pairs_per_source) and min(self.pairs_per_source) >= 1
        require(holds, "space.pairs_per_source", self.pairs_per_source, "one or more numbers >= 1")
        for name in ("head_lr", "lr"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"space.{name}", (low, high), "positive, low to high")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig(PairTrainingConfig):
    """A search over MORE's weighting: TPE under ASHA, and random search beside it.

    The rates of the run that is searched are the defaults', and its seed is the search's too.
    """

    weighting: More = field(default_factory=More)
    """MORE's weighting; its numbers are searched."""
    out: str = field(default="runs/tune", metadata=NO_EFFECT)
    """Folder of the results. The same folder with the same configuration resumes."""
    num_trials: int = 24
    """Trials of each of the two searches, the defaults among them."""
    max_concurrent: int = field(default=2, metadata=NO_EFFECT)
    """Trials at a time. With one, a search is the same whenever it is run."""
    cpus: float = field(default=1.0, metadata=NO_EFFECT)
    """CPUs of a trial, and its threads."""
    gpus: float = field(default=0.0, metadata=NO_EFFECT)
    """GPUs of a trial; shares of one are allowed."""
    num_evaluations: int = 8
    """Evaluations on *select* in a whole trial, after which ASHA may stop it."""
    grace: int = 2
    """Evaluations before which no trial is stopped."""
    reduction: float = 3.0
    """ASHA's factor: at 1, 3, 9, ... times `grace` evaluations, the best third goes on."""
    space: SpaceConfig = SpaceConfig()
    experiment: str = field(default="tune_more", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        # No super(): a dataclass with slots is another class than the one that it names.
        PairTrainingConfig.__post_init__(self)
        for name in ("max_concurrent", "num_evaluations", "grace"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.num_trials >= 2, "num_trials", self.num_trials, ">= 2: one is the defaults")
        require(self.cpus > 0, "cpus", self.cpus, "positive")
        require(self.gpus >= 0, "gpus", self.gpus, ">= 0")
        require(
            self.grace <= self.num_evaluations, "grace", self.grace, "at most `num_evaluations`"
        )
        require(self.reduction > 1, "reduction", self.reduction, "> 1")
        for name in self.rates:
            rate, (low, high) = getattr(self.schedule, name), getattr(self.space, name)
            around = f"around `schedule.{name}` {rate:g}, which the defaults have"
            require(low <= rate <= high, f"space.{name}", (low, high), around)

    @property
    def rates(self) -> tuple[str, ...]:
        """The learning rates that are searched."""
        return ("head_lr",) if isinstance(self.backbone.trained, HeadOnly) else ("head_lr", "lr")

    def run_config(self) -> PreferenceConfig:
        """Returns the run that is searched, inside one process."""
        shared = {f.name: getattr(self, f.name) for f in fields(PairTrainingConfig)}
        return PreferenceConfig(**shared, num_workers=0)


def num_steps(config: PreferenceConfig, num_pairs: int) -> int:
    """Returns the steps of a run on a number of training pairs."""
    schedule = config.schedule
    return -(-num_pairs // schedule.pairs_per_step) * schedule.num_epochs


def paper_point(config: TuneConfig, num_sources: int, num_pairs: int) -> Point:
    """Returns MORE's defaults: l2, momentum .99, the minimum norm itself, 16 pairs a source.

    On few pairs, the largest number below 16 that leaves a run `LEAST_STEPS` steps, else the least
    of the space. Rates are those of the recipe: the paper's 1e-6 belongs to a 7B model and all of
    its parameters.
    """
    schedule = config.schedule
    most = num_pairs * schedule.num_epochs / (LEAST_STEPS * num_sources)
    fits = [n for n in config.space.pairs_per_source if n <= min(PAPER_PAIRS, most)]
    point = Point(
        normalizer="l2",
        momentum=0.99,
        interpolation=1.0,
        pairs_per_source=max(fits, default=min(config.space.pairs_per_source)),
        head_lr=schedule.head_lr,
    )
    if "lr" in config.rates:
        point["lr"] = schedule.lr
    return point


def at_point(
    config: TuneConfig, point: Point, num_sources: int, num_pairs: int
) -> PreferenceConfig:
    """Returns the run of a trial.

    Evaluations are as far apart in pairs, whatever number of pairs a step holds.
    """
    schedule = replace(
        config.schedule,
        pairs_per_step=point["pairs_per_source"] * num_sources,
        head_lr=point["head_lr"],
        lr=point.get("lr", config.schedule.lr),
    )
    weighting = More(
        normalizer=point["normalizer"],
        momentum=point["momentum"],
        interpolation=point["interpolation"],
    )
    run = replace(config.run_config(), schedule=schedule, weighting=weighting)
    apart = max(1, round(num_steps(run, num_pairs) / config.num_evaluations))
    return replace(run, schedule=replace(schedule, eval_every=apart))


def command_words(
    target: Mapping[str, Any], base: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Returns the words of a command line that turn one configuration into another.

    An alternative of another kind is named as in `backbone.trained:full`, with all its numbers. A
    part that only one of the two has (the planted world) stands in no word.

    Args:
        target: the configuration that is wanted, as nested values.
        base: the configuration that the command starts from.
        prefix: path of both inside the whole configuration, with a dot behind.
    """
    words: list[str] = []
    for name, value in target.items():
        old = base.get(name)
        flag = f"--{prefix}{name}".replace("_", "-")
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if value.get("kind") != old.get("kind"):
                words.append(f"{prefix}{name}:{value['kind']}".replace("_", "-"))
                old = {}
            words += command_words(value, old, f"{prefix}{name}.")
        elif name == "kind" or value is None or value == old or isinstance(value, Mapping):
            continue
        elif isinstance(value, bool):
            words.append(flag if value else f"--{prefix}no-{name}".replace("_", "-"))
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words
