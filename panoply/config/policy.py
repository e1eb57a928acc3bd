"""Settings of sampling and training a policy: frozen dataclasses, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.preference import Lora, TrainedBackboneConfig
from panoply.config.resume import NO_EFFECT
from panoply.secret import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Sampling of responses from a policy (LASeR, arXiv 2410.01735)."""

    temperature: float = 0.8
    """Divisor of the logits; 0 takes the most likely token. LASeR: 0.8."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from, the most likely tokens first."""
    max_tokens: int = 128
    """Tokens of the longest response, the one that ends it included."""
    batch_size: int = 64
    """Samples that are decoded together; those of one prompt are never split up."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", self.temperature, ">= 0")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "in (0, 1]")
        for name in ("max_tokens", "batch_size"):
            require(getattr(self, name) >= 1, f"sampling.{name}", getattr(self, name), ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServerConfig:
    """Server that draws the samples: vLLM, alone or in Ray Serve LLM."""

    url: str = ""
    """Address of the server and its name for the initial policy, `http://HOST:PORT#NAME`, or
    `http://HOST:PORT?key_variable=VARIABLE#NAME` where an environment variable holds its API key.
    Empty: no server; samplers of the run draw with transformers."""
    adapters: str = ""
    """URI of a bucket for the run's adapters, Ray Serve LLM's `dynamic_lora_loading_path`. Empty:
    vLLM loads them from the run's folder, which the server then has to see."""
    timeout: float = 600.0
    """Seconds allowed for one sample, all attempts together."""

    def __post_init__(self) -> None:
        parts = Address.parse(self.url, "server.url")
        shaped = self.url.startswith(("http://", "https://")) and bool(parts.model)
        require(not self.url or shaped, "server.url", self.url, "'http://HOST:PORT#NAME', or empty")
        named = not self.adapters or bool(self.url and "://" in self.adapters)
        require(named, "server.adapters", self.adapters, "a URI, with a `server.url`, or empty")
        require(self.timeout > 0, "server.timeout", self.timeout, "positive")

    @property
    def address(self) -> str:
        """URL of the server without the model."""
        return Address.parse(self.url, "server.url").url.rstrip("/")

    @property
    def model(self) -> str:
        """Name of the initial policy on the server."""
        return Address.parse(self.url, "server.url").model

    @property
    def key_variable(self) -> str:
        """Environment variable of the server's API key; empty: it asks for none."""
        return Address.parse(self.url, "server.url").key_variable


def check_policy_backbone(backbone: TrainedBackboneConfig) -> None:
    """Checks that a backbone can be trained as a policy.

    Raises:
        ValueError: other parameters than adapters are trained, or layers are left out.
    """
    adapted = isinstance(backbone.trained, Lora)
    require(adapted, "backbone.trained", backbone.trained.kind, "'lora' for a policy")
    allowed = "1 for a policy, whose last layer samples"
    require(backbone.depth == 1, "backbone.depth", backbone.depth, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """One round of policy training: DPO and NLL on pairs (LASeR, arXiv 2410.01735, section 3.1).

    The paper trains adapters on two projections with dropout; ours lie on all linear layers and
    have none, so that a step does not depend on how many workers share it.
    """

    beta: float = 0.1
    """Inverse temperature of DPO."""
    alpha: float = 1.0
    """Weight of the NLL of the chosen response; LASeR: 1 for reasoning, 0 for instructions."""
    lr: float = 5e-6
    """Learning rate of AdamW, constant. LASeR: 5e-6."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    prompts_per_step: int = 16
    """Prompts of a step over all workers; a step has all pairs of its prompts. LASeR: 16."""
    num_epochs: int = 1
    """Passes over the pairs of a round."""
    checkpoint_every: int = field(default=20, metadata=NO_EFFECT)
    """Steps between checkpoints, from which any number of workers can resume."""
    token_budget: int = field(default=8192, metadata=NO_EFFECT)
    """Most tokens of one forward pass; the gradients do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("alpha", "weight_decay"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        for name in ("beta", "lr", "max_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in ("prompts_per_step", "num_epochs", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.token_budget >= 64, "token_budget", self.token_budget, ">= 64")
