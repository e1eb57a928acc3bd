"""What a search over MORE's weighting is: its space, its trials, and the paper's point in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

from panoply.config import require
from panoply.config.preference import Normalizer, PreferenceConfig, one_of

PAPER_PAIRS = 16
"""Pairs of a source in a step of the paper."""
LEAST_STEPS = 20
"""Steps that the defaults leave a run: on little data, 16 pairs a source would leave a handful."""


class Point(TypedDict):
    """What a trial is given."""

    normalizer: Normalizer
    momentum: float
    interpolation: float
    pairs_per_source: int
    head_lr: float
    lr: NotRequired[float]
    """Absent where no backbone is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Where a search looks; the defaults must lie inside, and equal ends fix a number."""

    normalizers: tuple[Normalizer, ...] = ("none", "l2", "loss", "loss+")
    """Of a source's gradient."""
    momentum: tuple[float, float] = (0.05, 1.0)
    """Weight of the newest gradient; on a logarithmic scale."""
    interpolation: tuple[float, float] = (0.0, 1.0)
    """rho between equal weights and the minimum norm."""
    pairs_per_source: tuple[int, ...] = (4, 8, 16, 32)
    """Pairs of each source in a step; the number of epochs stays, so fewer mean more steps."""
    head_lr: tuple[float, float] = (1e-4, 1e-2)
    """Peak learning rate of the head; on a logarithmic scale."""
    lr: tuple[float, float] = (1e-5, 1e-3)
    """Peak learning rate of the backbone, on a logarithmic scale; not searched if it is frozen."""

    def __post_init__(self) -> None:
        for name in self.normalizers:
            one_of("space.normalizers", name, ("none", "l2", "loss", "loss+"))
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
class TuneConfig:
    """A search over MORE's weighting: TPE under ASHA, and random search beside it."""

    out: str = "runs/tune"
    """Folder of the results. The same folder with the same configuration resumes."""
    num_trials: int = 24
    """Trials of each of the two searches, the defaults among them."""
    max_concurrent: int = 2
    """Trials at a time. With one, a search is the same whenever it is run."""
    cpus: float = 1.0
    """CPUs of a trial, and its threads."""
    gpus: float = 0.0
    """GPUs of a trial; shares of one are allowed."""
    num_looks: int = 8
    """Looks at *select* in a whole trial, after which ASHA may stop it."""
    grace: int = 2
    """Looks before which no trial is stopped."""
    reduction: float = 3.0
    """ASHA: at 1, 3, 9, ... times `grace` looks, the best third goes on."""
    space: SpaceConfig = SpaceConfig()
    preference: PreferenceConfig
    """The run that is searched. Its rates are the defaults'; its `out`, `num_workers`, `gpus` and
    `experiment` are not read, and its seed is the search's too."""
    experiment: str = "tune_more"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        for name in ("max_concurrent", "num_looks", "grace"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.num_trials >= 2, "num_trials", self.num_trials, ">= 2: one is the defaults")
        require(self.cpus > 0, "cpus", self.cpus, "positive")
        require(self.gpus >= 0, "gpus", self.gpus, ">= 0")
        require(self.grace <= self.num_looks, "grace", self.grace, "at most `num_looks`")
        require(self.reduction > 1, "reduction", self.reduction, "> 1")
        sources = self.preference.weighting.sources
        require(sources == "more", "preference.weighting.sources", sources, "'more'")
        schedule = self.preference.schedule
        for name in self.rates:
            rate, (low, high) = getattr(schedule, name), getattr(self.space, name)
            around = f"around `preference.schedule.{name}` {rate:g}, the defaults' own"
            require(low <= rate <= high, f"space.{name}", (low, high), around)

    @property
    def rates(self) -> tuple[str, ...]:
        """The learning rates that are searched."""
        return ("head_lr",) if self.preference.backbone.trained == "head" else ("head_lr", "lr")


def num_steps(config: PreferenceConfig, num_pairs: int) -> int:
    """Returns the steps of a run on a number of training pairs."""
    schedule = config.schedule
    return -(-num_pairs // schedule.pairs_per_step) * schedule.num_epochs


def paper_point(config: TuneConfig, num_sources: int, num_pairs: int) -> Point:
    """Returns MORE's defaults: l2, momentum .99, the minimum norm itself, 16 pairs a source.

    On few pairs, the largest number below 16 that leaves a run `LEAST_STEPS` steps, else the least
    of the space. Rates are the recipe's own: the paper's 1e-6 belongs to a 7B model and all of its
    weights.
    """
    most = num_pairs * config.preference.schedule.num_epochs / (LEAST_STEPS * num_sources)
    fits = [n for n in config.space.pairs_per_source if n <= min(PAPER_PAIRS, most)]
    schedule = config.preference.schedule
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
    """Returns the run of a trial. Looks are as far apart in pairs, whatever a step holds."""
    base = config.preference
    per_step = point["pairs_per_source"] * num_sources
    schedule = replace(
        base.schedule,
        pairs_per_step=per_step,
        head_lr=point["head_lr"],
        lr=point.get("lr", base.schedule.lr),
    )
    weighting = replace(
        base.weighting,
        normalizer=point["normalizer"],
        momentum=point["momentum"],
        interpolation=point["interpolation"],
    )
    run = replace(base, schedule=schedule, weighting=weighting, num_workers=0)
    apart = max(1, round(num_steps(run, num_pairs) / config.num_looks))
    return replace(run, schedule=replace(schedule, eval_every=apart))


def flags(wanted: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the command-line flags that turn one configuration, as nested values, into another.

    A part that only one of them has (the planted world) stands in no flag.
    """
    told: list[str] = []
    for name, value in wanted.items():
        own = base.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            told += flags(value, own, f"{prefix}{name}.")
        elif isinstance(value, bool) and value != own:
            told.append(f"--{prefix}{'' if value else 'no-'}{name}".replace("_", "-"))
        elif isinstance(value, list | tuple) and value != own:
            told += [f"--{prefix}{name}".replace("_", "-"), *map(str, value)]
        elif value != own and not isinstance(value, Mapping) and value is not None:
            told += [f"--{prefix}{name}".replace("_", "-"), str(value)]
    return told
