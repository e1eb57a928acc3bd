"""Settings of an ArmoRM run."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoply.config import BackboneConfig, require
from panoply.config.files import (
    LabeledFilesConfig,
    bounds_of_scales,
    check_files,
    check_source,
    names_of_ratings,
)
from panoply.config.resume import DATA, NO_EFFECT
from panoply.config.tracked import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectivesConfig:
    """Stage 1: one ridge regression per objective (arXiv 2406.12845, section 3.1)."""

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
    """Ridge strengths alpha, in units of the mean feature variance; *select* chooses one for each
    objective."""
    num_folds: int = 5
    """Folds of the training prompts: the gate is trained on objective values from ridges that were
    fitted without the fold of the prompt."""
    min_ratings: int = 20
    """Fewest ratings of an objective; one with fewer is left out, and named."""
    block_rows: int = 8192
    """Most rows per block of sufficient statistics."""
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
    """Number of hidden layers. Paper: 3."""
    dropout: float = 0.3
    """Dropout after each hidden layer. The released code: 0.2."""
    input_dropout: float = 0.8
    """Dropout on the gate's features: with few prompts it keeps the gate from learning each by
    heart. Paper: none."""
    temperature: float = 10.0
    """Temperature tau of g(x) = s softmax(MLP(f(x)) / tau)."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, cosine to zero. Paper: 1e-3."""
    batch_size: int = 256
    """Pairs of one step over all workers, drawn with replacement. Paper: 1024."""
    num_steps: int = 1000
    """Most steps. Paper: 10,000; released code: 2,000."""
    eval_every: int = 50
    """Steps between evaluations on *select*."""
    patience: int = 6
    """Evaluations without a better log loss on *select* after which training stops."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden", "batch_size", "num_steps", "eval_every"):
            require(getattr(self, name) >= 1, f"gate.{name}", getattr(self, name), ">= 1")
        require(0 <= self.dropout < 1, "gate.dropout", self.dropout, "in [0, 1)")
        require(0 <= self.input_dropout < 1, "gate.input_dropout", self.input_dropout, "in [0, 1)")
        require(self.temperature > 0, "gate.temperature", self.temperature, "positive")
        require(self.lr > 0, "gate.lr", self.lr, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """Data made by rule: a planted preference world, whose truth is known."""

    num_prompts: int = 600
    """Number of prompts, with `num_responses` responses each."""
    num_responses: int = 4
    """Number of responses to a prompt; all their pairs are compared."""
    homogeneous: bool = False
    """Take the same weights in every domain, so that a gate has nothing to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmoRMConfig(LabeledFilesConfig, TrackedRun):
    """ArmoRM: rated objectives, and a gate that weighs them by the prompt (arXiv 2406.12845)."""

    out: str = field(default="runs/armorm", metadata=NO_EFFECT)
    """Folder of the results. The same folder with the same configuration resumes the run."""
    planted: SyntheticConfig | None = None
    """Run on the planted world instead of files."""
    ratings: tuple[str, ...] = field(default=(), metadata=DATA)
    """Rating files: Parquet, JSONL, or hub names."""
    rating_columns: tuple[str, ...] = ()
    """Columns of the rating files that are ratings, as in `tone,quality`; empty: those that hold
    numbers, but no ids, times or counts. `prompt=question` names a column of a known layout."""
    rating_scales: tuple[str, ...] = ()
    """Lowest and highest rating of a column or objective, as in `tone=1:5`; without one the
    published scale holds, or the range of the ratings."""
    rating_source: tuple[str, ...] = ()
    """Name of the rating files' source: one for all, or one for each file; `source` is that of the
    pairs."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: Parquet, JSONL, or hub names."""
    max_ratings_per_source: int = 0
    """Most ratings taken of one source, chosen by hash; 0 takes all."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    seed: int = 0
    """Seed of the split and of every initialization."""
    preference_objectives: bool = False
    """Gate one Bradley-Terry head per pair source beside the rated objectives."""
    backbone: BackboneConfig = BackboneConfig()
    """Frozen language model, and where its features are read."""
    objectives: ObjectivesConfig = ObjectivesConfig()
    """Stage 1: ridge regression of the rated objectives."""
    gate: GateConfig = GateConfig()
    """Stage 2: the prompt-conditioned gate."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Number of embedding actors, and most Ray Train workers; 0 trains inside the driver."""
    wait_minutes: float = field(default=15.0, metadata=NO_EFFECT)
    """Longest wait for nodes, in minutes; the run then starts with those that came, or names what
    is missing."""
    leave_one_out: bool = True
    """Also fit the gate without each pair source in turn and test it there."""
    store: str = field(default="", metadata=NO_EFFECT)
    """Root of the feature cache shared by runs; empty: `PANOPLY_STORE`, else the user's cache."""
    experiment: str = field(default="armorm", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    model_name: str = field(default="armorm", metadata=NO_EFFECT)
    """Name that the model gets in MLflow's registry; each run adds a version."""

    def __post_init__(self) -> None:
        if self.planted is None and not (self.ratings and self.pairs):
            raise ValueError(
                "name rating files and pair files (`--ratings FILE... --pairs FILE...`), "
                f"or take the embedded recipe; got {self.ratings!r} and {self.pairs!r}"
            )
        if self.planted is not None and (self.ratings or self.pairs):
            raise ValueError("the planted world brings its own data; drop `--ratings`, `--pairs`")
        check_files(self, self.pairs, "pairs")
        check_source(self.rating_source, self.ratings, "rating_source", "ratings")
        names_of_ratings(self.rating_columns)
        bounds_of_scales(self.rating_scales)
        require(self.num_workers >= 0, "num_workers", self.num_workers, ">= 0")
        require(self.wait_minutes > 0, "wait_minutes", self.wait_minutes, "positive")
        for name in ("max_ratings_per_source", "max_pairs_per_source", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
