"""Settings of merging reward models with policies, or with each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import require
from panoply.config.files import LabeledFilesConfig, check_files
from panoply.config.resume import DATA, NO_EFFECT, PLACE
from panoply.config.tracked import TrackedRun

MergeRule: TypeAlias = Literal["linear", "slerp", "task", "ties", "dare"]
WITH_BASE = ("task", "ties", "dare")
"""Rules that merge what each model changed of their base."""
WITH_DENSITY = ("ties", "dare")
"""Rules that keep a share of these changes alone."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares that are tried where pairs are named and no share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig(LabeledFilesConfig, TrackedRun):
    """Merge the weights of models that were trained from one base into one reward model.

    A reward model and a policy of a domain (DogeRM), or reward models that are equals (WARM).
    """

    models: tuple[str, ...] = field(metadata=PLACE)
    """Folders or hub names: first the reward model whose head, tokenizer and template stay, then
    policies of a domain, or reward models that are its equals."""
    shares: tuple[float, ...] = ()
    """Weights of the models behind the first, together, in (0, 1]. One is taken as it is; of
    several, and of 0 beside them, that which orders most pairs of *select* right. Empty: 0.1 to 0.5
    where pairs are named, else all models alike."""
    rule: MergeRule = "linear"
    """Rule for each tensor: linear (a mean), slerp (along the arc between two models), task (what
    the others changed is added), ties (changes whose signs agree) or dare (changes at random)."""
    base: str = field(default="", metadata=PLACE)
    """Model that all were trained from: a folder or hub name, needed by task, ties and dare."""
    density: float = 0.5
    """Share of each model's changes that ties keeps, the largest ones, and dare, at random."""
    seed: int = 0
    """Seed of the changes that dare keeps."""
    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files: *select* chooses the share, *calibrate* fits the temperature, and
    *test* is reported. Empty: the temperature stays 1, and one share is taken as it is."""
    fit_on_train: bool = False
    """Choose on *train* beside *select*, as far as no reward model was trained on its prompts."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    out: str = field(default="runs/merge", metadata=NO_EFFECT)
    """Folder of the results; the merged model is in `OUT/model`."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Scoring actors."""
    experiment: str = field(default="merge", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""
    model_name: str = field(default="merge", metadata=NO_EFFECT)
    """Name that the model gets in MLflow's registry; each run adds a version."""

    def __post_init__(self) -> None:
        require(len(self.models) > 1, "models", self.models, "a reward model and one model more")
        are_shares = all(0 < share <= 1 for share in self.shares)
        require(are_shares, "shares", self.shares, "in (0, 1]; 0 is tried beside them")
        are_judged = len(self.shares) < 2 or bool(self.pairs)
        require(are_judged, "shares", self.shares, "one number, or several beside `--pairs`")
        fits = bool(self.base) == (self.rule in WITH_BASE)
        require(fits, "base", self.base, f"a model for the rules {WITH_BASE}, and empty for others")
        is_pair = self.rule != "slerp" or len(self.models) == 2
        require(is_pair, "models", self.models, "two models for the rule 'slerp'")
        require(0 < self.density <= 1, "density", self.density, "in (0, 1]")
        check_files(self, self.pairs, "pairs")

    def tried_shares(self) -> tuple[float, ...]:
        """Returns the shares in their order: 0 and those that pairs judge, or one without pairs."""
        shares = self.shares or (SHARES if self.pairs else (1 - 1 / len(self.models),))
        return tuple(sorted({*shares, *((0.0,) if self.pairs else ())}))
