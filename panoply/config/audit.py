"""Settings of auditing the labels of preference pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import BackboneConfig, require
from panoply.config.files import LabeledFilesConfig, check_files
from panoply.config.resume import DATA, EXTENDS, NO_EFFECT
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.secret import check_file_uri

Head: TypeAlias = Literal["frozen", "none"]
Among: TypeAlias = Literal["any", "chosen_longer", "chosen_shorter"]
HEAD = "head"
"""Name of the voter that a run fits itself, out of fold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig(LabeledFilesConfig, TrackedRun):
    """Look for wrong labels and faulty rows in preference pairs, and propose a cleaned file."""

    pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Preference pair files to audit: Parquet, JSONL, or hub names; at least one."""
    scorers: tuple[str, ...] = field(default=(), metadata=DATA)
    """`NAME=WHERE` of each scorer that votes: a reward model's folder, hub name or
    `models:/NAME@ALIAS`; `function:FILE.py:NAME`; `DIALECT+URL#MODEL`; `replay:FILE`;
    `judge:FILE.yaml`; `combine:FILE.yaml`."""
    gold_pairs: tuple[str, ...] = field(default=(), metadata=DATA)
    """Files of trusted pairs like those that are audited. Half of their prompts say how often a
    right label looks wrong, and fix the scales; the other half tests what `train` fits."""
    verdicts: tuple[str, ...] = field(default=(), metadata=EXTENDS)
    """Files of a person's verdicts, as the page `OUT/review.html` saves them."""
    out: str = field(default="runs/audit", metadata=NO_EFFECT)
    """Folder of the findings, the cleaned pairs and the report."""
    head: Head = "frozen"
    """Voter that the run fits itself: a Bradley-Terry head on frozen features, each pair judged by
    one that has not seen its prompt; or none, and then no language model is loaded."""
    train: bool = field(default=False, metadata=EXTENDS)
    """Fit fresh heads on the pairs as they are, as cleaned, and without as many random rows, and
    test all on the trusted pairs."""
    flipped: float = 0.0
    """Share of labels that are swapped on purpose before the audit, to measure what it finds."""
    flipped_among: Among = "any"
    """Pairs among which labels are swapped on purpose: any, or as a rater with a liking for short
    or for long responses would have it, those whose chosen response is longer or shorter."""
    max_false: float = field(default=0.1, metadata=EXTENDS)
    """Largest expected share of right labels among those that votes propose to change."""
    flip_below: float = field(default=1.0, metadata=EXTENDS)
    """Mean margin against a label, in units of the median margin, from which on it is suspect where
    there are no trusted pairs."""
    unsure_within: float = field(default=0.1, metadata=EXTENDS)
    """Largest mean margin, of either sign and in the same unit, at which a label counts less."""
    soft_weight: float = field(default=0.5, metadata=EXTENDS)
    """Weight of a pair about which the voters are unsure."""
    max_pairs_per_source: int = 0
    """Most pairs taken of one source, chosen by hash; 0 takes all."""
    backbone: BackboneConfig = BackboneConfig(depths=(0.6,), poolings=("mean_response",))
    """Frozen language model of the head; one depth and one pooling."""
    num_folds: int = 5
    """Folds of the prompts: each pair is judged by a head that was fitted without its fold."""
    seed: int = 0
    """Seed of the folds, the halves of the trusted pairs, planted flips and random rows."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Actors of each scorer and of the embedding."""
    wait_minutes: float = field(default=15.0, metadata=NO_EFFECT)
    """Longest wait for nodes, in minutes."""
    store: str = field(default="", metadata=NO_EFFECT)
    """Root of the feature cache shared by runs; empty: `PANOPLY_STORE`, else the user's cache."""
    experiment: str = field(default="audit", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.pairs), "pairs", self.pairs, "at least one file")
        check_files(self, self.pairs, "pairs")
        for name in ("gold_pairs", "verdicts"):
            for file in getattr(self, name):
                check_file_uri(file, name)
        names = {scorer.name for scorer in self.named_scorers()}
        require(HEAD not in names, "scorers", HEAD, "a name other than that of the run's head")
        single = len(self.backbone.depths) == len(self.backbone.poolings) == 1
        both = (self.backbone.depths, self.backbone.poolings)
        require(single, "backbone.depths, backbone.poolings", both, "one depth and one pooling")
        can_train = not self.train or (self.head != "none" and bool(self.gold_pairs))
        require(can_train, "train", self.train, "used with `--gold-pairs` and a head to be fitted")
        require(0 <= self.flipped < 0.5, "flipped", self.flipped, "in [0, 0.5)")
        for name in ("max_false", "soft_weight"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("flip_below", "unsure_within", "max_pairs_per_source", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(self.num_folds >= 2, "num_folds", self.num_folds, ">= 2")
        require(self.num_workers > 0, "num_workers", self.num_workers, "positive")
        require(self.wait_minutes > 0, "wait_minutes", self.wait_minutes, "positive")

    def named_scorers(self) -> tuple[ServedModelConfig, ...]:
        """Returns the scorers with their names; none where only the head votes.

        Raises:
            ValueError: two have one name, or an address holds a secret.
        """
        return ServeConfig(models=self.scorers).served_models() if self.scorers else ()
