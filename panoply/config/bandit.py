"""What a selector is: frozen dataclasses, standard library only. Values are checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from panoply.config import require

PolicyName: TypeAlias = Literal[
    "linucb",
    "thompson",
    "ucb1",
    "moss",
    "epsilon_greedy",
    "exp3",
    "uniform",
    "fixed",
    "sequential",
]
Signal: TypeAlias = Literal[
    "negative_loss",
    "advantage",
    "improvement",
    "probe",
    "verifier",
    "held_out",
    "agreement",
]
Level: TypeAlias = Literal["prompt", "batch"]
Action: TypeAlias = Literal["warn", "sideline", "pause"]

SIGNALS: tuple[Signal, ...] = get_args(Signal)
"""What the bandit can be rewarded with (`panoply.laser.signals`)."""
SETTINGS: dict[PolicyName, tuple[str, ...]] = {
    "linucb": ("alpha", "ridge", "max_features", "first_pulls"),
    "thompson": ("noise", "strength", "max_features", "first_pulls"),
    "ucb1": ("alpha", "first_pulls"),
    "moss": ("horizon", "scale", "first_pulls"),
    "epsilon_greedy": ("epsilon", "first_pulls"),
    "exp3": ("gamma",),
    "uniform": (),
    "fixed": ("arm",),
    "sequential": ("span",),
}
"""What each policy of `panoply.bandit.bandits` can be told."""
REQUIRED: dict[PolicyName, str] = {"moss": "horizon", "fixed": "arm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditConfig:
    """A policy by name; a setting that is None is the policy's own."""

    name: PolicyName = "linucb"
    alpha: float | None = None
    """Width of the confidence bound of LinUCB and UCB1."""
    ridge: float | None = None
    """LinUCB's A_k starts at ridge I."""
    noise: float | None = None
    """Thompson's deviation of a reward around its mean."""
    strength: float | None = None
    """Precision of Thompson's prior."""
    max_features: int | None = None
    """Longer contexts are projected to this size."""
    horizon: int | None = None
    """Decisions in all; MOSS needs it."""
    scale: float | None = None
    """Width of MOSS's confidence bound."""
    epsilon: float | None = None
    """Share of epsilon-greedy's decisions that are uniform."""
    gamma: float | None = None
    """Exp3's share of uniform decisions, and its step size."""
    arm: int | None = None
    """Number of the fixed arm."""
    span: int | None = None
    """Rewards that come back before `sequential` moves on."""
    first_pulls: int | None = None
    """Pulls of each arm before the first estimate counts."""

    def __post_init__(self) -> None:
        allowed = tuple(SETTINGS)
        require(self.name in allowed, "policy.name", self.name, f"one of {allowed}")
        own = SETTINGS[self.name]
        for setting in self.given:
            value = getattr(self, setting)
            require(setting in own, f"policy.{setting}", value, f"left out with {self.name!r}")
        needed = REQUIRED.get(self.name)
        if needed:
            require(needed in self.given, f"policy.{needed}", None, f"given with {self.name!r}")

    @property
    def given(self) -> dict[str, float]:
        """The settings that are not the policy's own."""
        names = sorted({name for settings in SETTINGS.values() for name in settings})
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalConfig:
    """What the bandit is rewarded with; all signals that can be computed are logged beside it."""

    name: Signal = "negative_loss"
    """The one that is applied."""
    low: float = 0.2
    """Quantile of recent values that gives reward 0. LASeR: .2."""
    high: float = 0.8
    """Quantile of recent values that gives reward 1. LASeR: .8."""
    window: int = 20
    """Rounds whose values the quantiles are over, the present one among them. LASeR: all."""
    wait: int = 5
    """Values without which there are no quantiles, and no reward."""
    decay: float = 0.9
    """Of the baseline that an advantage is the distance to."""

    def __post_init__(self) -> None:
        require(self.name in SIGNALS, "signal.name", self.name, f"one of {SIGNALS}")
        quantiles = (self.low, self.high)
        require(
            0 <= self.low < self.high <= 1, "signal.low, high", quantiles, "0 <= low < high <= 1"
        )
        require(self.window >= 1, "signal.window", self.window, ">= 1")
        require(self.wait >= 2, "signal.wait", self.wait, ">= 2")
        require(0 <= self.decay < 1, "signal.decay", self.decay, "in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorConfig:
    """A bandit over reward models, as an actor holds it."""

    policy: BanditConfig = BanditConfig()
    signal: SignalConfig = SignalConfig()
    level: Level = "prompt"
    """One decision for each prompt, or one for all prompts of a round (LASeR's algorithm)."""
    costs: tuple[float, ...] = ()
    """Cost of a decision for each arm, in units of the reward; empty: none."""
    seed: int = 0
    """Of the draws."""
    max_failures: int = 0
    """Failed prompts of one round that an arm is forgiven; with more it is sidelined."""
    sideline_rounds: int = 5
    """Rounds for which an arm is sidelined; then it may be chosen again."""

    def __post_init__(self) -> None:
        require(self.level in get_args(Level), "level", self.level, f"one of {get_args(Level)}")
        alone = self.signal.name != "held_out" or self.level == "batch"
        allowed = "'batch' with the signal 'held_out', which one prompt does not move"
        require(alone, "level", self.level, allowed)
        inside = all(0 <= cost <= 1 for cost in self.costs)
        require(inside, "costs", self.costs, "numbers in [0, 1]")
        for name in ("seed", "max_failures"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.sideline_rounds >= 1, "sideline_rounds", self.sideline_rounds, ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """When a run is called suspect, and what follows (`panoply.laser.monitor`).

    'pause' and 'sideline' are what the loop is asked to do; 'sideline' names the arm that was
    chosen most in the window.
    """

    window: int = 10
    """Rounds that are compared with as many before them."""
    sigmas: float = 3.0
    """Standard errors by which a mean has to move to count as moved."""
    hacking: Action = "sideline"
    """The arm's own scores rise while the probe is flat or falls."""
    length_drift: float = 0.5
    """Relative change of the mean length since the first window that is called drift."""
    length: Action = "warn"
    format_drop: float = 0.1
    """Fall of the share of well-formed responses since the first window."""
    format: Action = "warn"
    max_kl: float = 1.0
    """Mean KL of the policy from its start, in nats for each token."""
    kl: Action = "pause"
    max_failed: float = 0.5
    """Share of prompts of a window without a usable reward."""
    failed: Action = "pause"

    def __post_init__(self) -> None:
        require(self.window >= 2, "alarms.window", self.window, ">= 2")
        for name in ("sigmas", "length_drift", "format_drop", "max_kl"):
            value = getattr(self, name)
            require(value > 0, f"alarms.{name}", value, "positive")
        require(0 < self.max_failed <= 1, "alarms.max_failed", self.max_failed, "in (0, 1]")
        for name in ("hacking", "length", "format", "kl", "failed"):
            value = getattr(self, name)
            require(
                value in get_args(Action), f"alarms.{name}", value, f"one of {get_args(Action)}"
            )
