"""Settings of scoring a public board by any scorers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import require
from panoply.config.files import names_of_columns
from panoply.config.resume import DATA, NO_EFFECT
from panoply.config.serve import ServeConfig, ServedModelConfig
from panoply.config.tracked import TrackedRun
from panoply.secret import check_file_uri

BoardName: TypeAlias = Literal[
    "judgebench",
    "mrewardbench",
    "pairs",
    "ppe",
    "rewardbench",
    "rewardbench2",
    "rewardmath",
    "rmb",
    "rmbench",
]
"""Boards, each a module of `panoply.boards`."""
RESERVED = ("constant", "length", "random")
"""Scorers that every report has beside those that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardConfig(TrackedRun):
    """Score a public board, or pairs of your own, by any scorers, with the board's own numbers."""

    board: BoardName
    """Board that the files are of; `pairs` are pairs of your own in any layout."""
    files: tuple[str, ...] = field(default=(), metadata=DATA)
    """Files of the board: paths, patterns, URIs or hub names; at least one."""
    scorers: tuple[str, ...] = field(default=(), metadata=DATA)
    """`NAME=WHERE` of each scorer: a reward model's folder, hub name or `models:/NAME@ALIAS`;
    `function:FILE.py:NAME`; `DIALECT+URL#MODEL`; `replay:FILE`; `judge:FILE.yaml`;
    `combine:FILE.yaml`. Others are compared with the first. More of them may be added to a
    finished run."""
    training: tuple[str, ...] = field(default=(), metadata=DATA)
    """Training files of pairs, ratings or prompts, in which the board's prompts are looked for; the
    numbers on those that are not there stand beside."""
    columns: tuple[str, ...] = ()
    """Columns under the names that the board has for them, as in `prompt=question`."""
    out: str = field(default="runs/board", metadata=NO_EFFECT)
    """Folder of the scores and the report."""
    num_workers: int = field(default=2, metadata=NO_EFFECT)
    """Actors of each scorer; they share a judge's limits."""
    max_quarantine_share: float = 0.2
    """Largest share of bad rows, which are left out and counted; a larger one stops the run."""
    experiment: str = field(default="board", metadata=NO_EFFECT)
    """MLflow experiment, or project of another tracker."""

    def __post_init__(self) -> None:
        require(bool(self.files), "files", self.files, "at least one file")
        for name, files in (("files", self.files), ("training", self.training)):
            for file in files:
                check_file_uri(file, name)
        require(bool(self.scorers), "scorers", self.scorers, "at least one NAME=WHERE")
        reserved = {*RESERVED} & {scorer.name for scorer in self.named_scorers()}
        require(not reserved, "scorers", sorted(reserved), "names that no row of the report has")
        names_of_columns(self.columns)
        share = self.max_quarantine_share
        require(0 <= share <= 1, "max_quarantine_share", share, "in [0, 1]")
        require(self.num_workers > 0, "num_workers", self.num_workers, "positive")

    def named_scorers(self) -> tuple[ServedModelConfig, ...]:
        """Returns the scorers with their names.

        Raises:
            ValueError: two have one name, or an address holds a secret.
        """
        return ServeConfig(models=self.scorers).served_models()
