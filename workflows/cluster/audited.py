"""Pairs that are audited, with trusted ones behind them, and what each is used for.

Legend: `N` audited pairs and behind them trusted ones, `P` audited pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from panoply.armorm.label_heads import PairRoles
from panoply.config.audit import AuditConfig
from panoply.config.files import names_of_columns
from panoply.config.serve import ServedModelConfig
from panoply.data.audit_files import swap_labels
from panoply.data.ingest import Ingested, IngestLimits, Refusal, ingest_pairs
from panoply.data.read import Input, named_inputs
from panoply.data.schema import digest, fold_of, part_of, uniform
from panoply.data.summary import summary_lines
from panoply.data.tables import TextFiles
from panoply.hub.backbone.pretrained import load_renderer
from panoply.report.progress import RunLogger
from panoply.types import Bools, Ints, Strings
from workflows.cluster.evaluated import open_evaluated, refusal_of

COLUMNS = (
    *("row_id", "chosen_id", "rejected_id", "split_key", "source"),
    *("chosen_length", "rejected_length"),
)


@dataclass(frozen=True)
class AuditedPairs:
    """Ids, keys and roles of the pairs of an audit; their texts stay in the files."""

    out: Path
    """Folder of the run."""
    path: Path
    """Canonical file of the audited pairs, in which some labels may be swapped on purpose."""
    gold_path: Path | None
    row_ids: Sequence[str]
    gold_ids: Sequence[str]
    chosen_N: Strings
    rejected_N: Strings
    key_N: Strings
    source_N: Strings
    gap_N: Ints
    """Length of the chosen minus length of the rejected response."""
    fold_N: Ints
    flipped_P: Bools
    """Labels that were swapped on purpose."""
    quarantined: Mapping[str, int]
    seed: int

    @cached_property
    def is_audited_N(self) -> Bools:
        """True of the audited pairs."""
        return np.arange(len(self.key_N)) < len(self.row_ids)

    @cached_property
    def _sets_thresholds_N(self) -> Bools:
        """True of the prompts that would set thresholds as trusted ones; a half of all."""
        halves = {key: uniform(self.seed, "trusted", key) < 0.5 for key in set(self.key_N)}
        return np.array([halves[key] for key in self.key_N], np.bool_)

    @cached_property
    def trusted(self) -> Ints:
        """Rows of the trusted pairs that fix scales and thresholds."""
        return np.flatnonzero(~self.is_audited_N & self._sets_thresholds_N)

    @cached_property
    def tested(self) -> Ints:
        """Rows of the trusted pairs that set nothing, and test."""
        return np.flatnonzero(~self.is_audited_N & ~self._sets_thresholds_N)

    @property
    def voted(self) -> dict[str, Ints]:
        """Rows on which a voter needs votes, by what they are: audited, or trusted where any are.

        Without a vote on trusted pairs a voter has no scale, and none on the audited ones counts.
        """
        rows = {"audited": np.flatnonzero(self.is_audited_N), "trusted": self.trusted}
        return {part: numbers for part, numbers in rows.items() if len(numbers)}

    @cached_property
    def roles(self) -> PairRoles:
        """Roles of all pairs for heads that judge labels.

        Heads learn the trusted pairs that fix thresholds too: each is judged, as the audited ones
        are, by a head that has not seen its fold.
        """
        trusted_N = np.zeros(len(self.key_N), np.bool_)
        trusted_N[self.trusted] = True
        # Trusted pairs are few, and choose alone: a third of their prompts do.
        chooses = {key: part_of(key, self.seed) == "select" for key in self.key_N}
        for key in self.key_N[self.trusted]:
            chooses[key] = uniform(self.seed, "choose", key) < 1 / 3
        return PairRoles(
            fold_P=self.fold_N,
            fitted_P=self.is_audited_N | trusted_N,
            select_P=np.array([chooses[key] for key in self.key_N], np.bool_),
            trusted_P=trusted_N,
        )

    @cached_property
    def roles_apart_from_test(self) -> PairRoles:
        """Roles of all pairs for fresh heads: no prompt of the test is among those they learn."""
        apart_N = ~np.isin(self.key_N, self.key_N[self.tested])
        return replace(self.roles, fitted_P=self.roles.fitted_P & apart_N)

    @property
    def texts(self) -> TextFiles:
        """The files whose texts are embedded."""
        files = [self.path] if self.gold_path is None else [self.path, self.gold_path]
        return TextFiles(pairs=tuple(map(str, files)))

    @property
    def sides(self) -> dict[str, tuple[str, str]]:
        """Ids of the chosen and of the rejected response by audited row."""
        num = len(self.row_ids)
        both = zip(self.chosen_N[:num].tolist(), self.rejected_N[:num].tolist(), strict=True)
        return dict(zip(self.row_ids, both, strict=True))

    def summary(self, name: str, files: Sequence[str]) -> dict[str, Any]:
        """Returns what trackers keep of `pairs` or `gold_pairs`."""
        ids = self.row_ids if name == "pairs" else self.gold_ids
        return {"id": digest(*sorted(ids)), "rows": len(ids), "files": files}


def read_audited(
    config: AuditConfig, scorers: Sequence[ServedModelConfig], folder: Path, logger: RunLogger
) -> AuditedPairs:
    """Reads the audited and the trusted pairs, and swaps labels on purpose where that is set.

    Raises:
        FileNotFoundError, ValueError: see `panoply.data.ingest.ingest_pairs`.
    """
    refusal = _refusal(config, scorers)
    limits = IngestLimits(
        max_rows_per_source=config.max_pairs_per_source or None,
        max_quarantine_share=config.max_quarantine_share,
        seed=config.seed,
    )
    ingested = ingest_pairs(named_inputs(config.pairs, config), folder, limits, refusal)
    _tell(ingested, logger)
    path = ingested.path
    row_ids: list[str] = pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()
    flipped_P = _planted_flips(config, ingested.path)
    if config.flipped:
        path = folder / "flipped.parquet"
        swap_labels(ingested.path, flipped_P, path)
        logger.info(f"planted: {int(flipped_P.sum()):,} labels swapped on purpose")
    gold_path, tables = None, [pq.read_table(path, columns=list(COLUMNS))]
    if config.gold_pairs:
        columns_of = names_of_columns(config.columns)
        inputs = [Input(file, columns=columns_of) for file in config.gold_pairs]
        every = replace(limits, max_rows_per_source=None)
        gold = ingest_pairs(inputs, folder / "trusted", every, refusal)
        _tell(gold, logger)
        gold_path = gold.path
        tables.append(pq.read_table(gold_path, columns=list(COLUMNS)))
        shared = np.isin(*[table["split_key"].to_numpy() for table in tables])
        if shared.any():
            logger.info(
                f"{int(shared.sum()):,} audited pairs share their prompt with trusted ones: no "
                "head judges a pair of a prompt that it learned"
            )
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for table in tables:
        for name, values in columns.items():
            values += table[name].to_pylist()
    lengths = np.array([columns["chosen_length"], columns["rejected_length"]], np.int64)
    folds = {key: fold_of(key, config.seed, config.num_folds) for key in set(columns["split_key"])}
    return AuditedPairs(
        out=folder.parent,
        path=path,
        gold_path=gold_path,
        row_ids=row_ids,
        gold_ids=columns["row_id"][len(row_ids) :],
        chosen_N=np.array(columns["chosen_id"], np.object_),
        rejected_N=np.array(columns["rejected_id"], np.object_),
        key_N=np.array(columns["split_key"], np.object_),
        source_N=np.array(columns["source"], np.object_),
        gap_N=lengths[0] - lengths[1],
        fold_N=np.array([folds[key] for key in columns["split_key"]], np.int64),
        flipped_P=flipped_P,
        quarantined=dict(ingested.num_quarantined),
        seed=config.seed,
    )


def _refusal(config: AuditConfig, scorers: Sequence[ServedModelConfig]) -> Refusal | None:
    """Returns why a scorer or the head's backbone cannot read a prompt; None where none can."""
    refusals: list[Refusal] = []
    if of_scorers := refusal_of([open_evaluated(scorer.where) for scorer in scorers]):
        refusals.append(of_scorers)
    if config.head != "none":
        renderer = load_renderer(config.backbone.model, config.backbone.rendering)
        refusals.append(renderer.refusal)
    if not refusals:
        return None
    return lambda prompt: next(filter(None, (refusal(prompt) for refusal in refusals)), "")


def _planted_flips(config: AuditConfig, path: Path) -> Bools:
    """Returns the labels `[P]` that are swapped on purpose: of eligible pairs, each as likely.

    Raises:
        ValueError: fewer pairs are eligible than are to be swapped.
    """
    lengths = ["chosen_length", "rejected_length"]
    table = pq.read_table(path, columns=["row_id", *lengths])
    chosen_P, rejected_P = [table[name].to_numpy() for name in lengths]
    eligible_P = {
        "any": np.ones(len(table), np.bool_),
        "chosen_longer": chosen_P > rejected_P,
        "chosen_shorter": chosen_P < rejected_P,
    }[config.flipped_among]
    share = config.flipped * len(table) / max(1, int(eligible_P.sum()))
    if share > 1:
        raise ValueError(
            f"`flipped` is {config.flipped} of all labels, but {eligible_P.mean():.2f} of the "
            f"pairs are {config.flipped_among!r}: swap fewer, or among other pairs "
            "(`--flipped-among`)"
        )
    draws = [uniform(config.seed, "flip", row_id) for row_id in table["row_id"].to_pylist()]
    return eligible_P & (np.array(draws) < share)


def _tell(ingested: Ingested, logger: RunLogger) -> None:
    for line in summary_lines(ingested):
        logger.info(line)
