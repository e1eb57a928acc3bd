"""Configuration of a bandit over reward models: its rule, its reward, and the alarms of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from panoply.bandit.bandits import Bandit, LinUCB
from panoply.config import require
from panoply.config.serve import STRICT

Signal: TypeAlias = Literal[
    "negative_loss",
    "advantage",
    "improvement",
    "gold_margin",
    "verifier",
    "held_out",
    "agreement",
]
Level: TypeAlias = Literal["prompt", "batch"]
Action: TypeAlias = Literal["warn", "suspend", "stop"]

SIGNALS: tuple[Signal, ...] = get_args(Signal)
"""Rewards that a bandit can have (`panoply.laser.signals`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalConfig:
    """The reward of the bandit; all signals that can be computed are logged beside it."""

    __pydantic_config__ = STRICT

    name: Signal = "negative_loss"
    """Signal that is the bandit's reward."""
    low: float = 0.2
    """Quantile of recent values that gives reward 0. LASeR: .2."""
    high: float = 0.8
    """Quantile of recent values that gives reward 1. LASeR: .8."""
    window: int = 20
    """Rounds whose values the quantiles are over, the present one among them. LASeR: all."""
    min_history: int = 5
    """Fewest values that quantiles are taken of; with fewer there is no reward."""
    decay: float = 0.9
    """Decay of the running mean of the negative loss, the baseline of `advantage`."""

    def __post_init__(self) -> None:
        require(self.name in SIGNALS, "signal.name", self.name, f"one of {SIGNALS}")
        quantiles = (self.low, self.high)
        require(
            0 <= self.low < self.high <= 1, "signal.low, high", quantiles, "0 <= low < high <= 1"
        )
        require(self.window >= 1, "signal.window", self.window, ">= 1")
        require(self.min_history >= 2, "signal.min_history", self.min_history, ">= 2")
        require(0 <= self.decay < 1, "signal.decay", self.decay, "in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorConfig:
    """A bandit over reward models, as its actor holds it."""

    bandit: Bandit = field(default_factory=LinUCB)
    """Rule that chooses an arm. A recipe fixes the kind, flags set its numbers."""
    signal: SignalConfig = SignalConfig()
    """Reward of the bandit."""
    level: Level = "prompt"
    """One decision for each prompt, or one for all prompts of a round (LASeR's algorithm)."""
    costs: tuple[float, ...] = ()
    """Cost of a decision for each arm, in units of the reward; empty: none."""
    seed: int = 0
    """Seed of the draws."""
    max_failures: int = 0
    """Failed prompts of one round that an arm may have; with more it is suspended."""
    suspend_rounds: int = 5
    """Rounds for which an arm is suspended; then it may be chosen again."""

    def __post_init__(self) -> None:
        require(self.level in get_args(Level), "level", self.level, f"one of {get_args(Level)}")
        fits_level = self.signal.name != "held_out" or self.level == "batch"
        allowed = "'batch' with the signal 'held_out', which one prompt does not move"
        require(fits_level, "level", self.level, allowed)
        inside = all(0 <= cost <= 1 for cost in self.costs)
        require(inside, "costs", self.costs, "numbers in [0, 1]")
        for name in ("seed", "max_failures"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.suspend_rounds >= 1, "suspend_rounds", self.suspend_rounds, ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """Alarms of a run, and what each asks for (`panoply.laser.monitor`).

    'warn' is only reported, 'stop' ends the run, and 'suspend' takes the arm that was chosen most
    in the window out of the choice for a while.
    """

    window: int = 10
    """Rounds that are compared with as many before them."""
    sigmas: float = 3.0
    """Standard errors by which a mean has to move to count as moved."""
    hacking: Action = "suspend"
    """Action where the arms' own scores rise while the gold margin is flat or falls."""
    length_drift: float = 0.5
    """Relative change of the mean length since the first window that is called drift."""
    length: Action = "warn"
    """Action where the mean length drifts."""
    format_drop: float = 0.1
    """Fall of the share of well-formed responses since the first window that is called a drop."""
    format: Action = "warn"
    """Action where the share of well-formed responses drops."""
    max_kl: float = 1.0
    """Largest mean KL of the policy from its start, in nats for each token."""
    kl: Action = "stop"
    """Action where the KL is larger."""
    max_failed: float = 0.5
    """Largest share of decisions of a window without a usable reward."""
    failed: Action = "stop"
    """Action where the share is larger."""

    def __post_init__(self) -> None:
        require(self.window >= 2, "alarms.window", self.window, ">= 2")
        for name in ("sigmas", "length_drift", "format_drop", "max_kl"):
            value = getattr(self, name)
            require(value > 0, f"alarms.{name}", value, "positive")
        require(0 < self.max_failed <= 1, "alarms.max_failed", self.max_failed, "in (0, 1]")
        actions = get_args(Action)
        for name in ("hacking", "length", "format", "kl", "failed"):
            value = getattr(self, name)
            require(value in actions, f"alarms.{name}", value, f"one of {actions}")
