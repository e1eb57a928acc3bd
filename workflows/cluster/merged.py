"""Merges at several shares: what each makes of pairs, which is best, and what merging gained.

Legend: `P` pairs, `N` texts, `K` heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoply.config.members import pooled_rule
from panoply.data.tables import PairTable, load_pairs
from panoply.files import whole_file
from panoply.hub.artefact.manifest import ScalarManifest
from panoply.hub.merge.merge import Merge, MergedFit
from panoply.measure.calibration import fit_scale
from panoply.measure.intervals import wins
from panoply.measure.metrics import accuracy
from panoply.measure.pair_report import compare
from panoply.report.results.merge import ALL_SOURCES
from panoply.scorers.composite.rules import pooled
from panoply.types import Array, Ints
from workflows.cluster.evaluated import EvaluatedScorer
from workflows.cluster.score import TextScores

ALONE = 0.0
"""Share at which the merged model is the reward model alone."""


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Pairs, and the rows of them that choose, calibrate and report."""

    path: Path
    table: PairTable
    select: Ints
    """Rows of *select*, and of *train* as far as no reward model was trained on their prompts."""
    calibrate: Ints
    test: Ints
    """Rows of *test* whose prompts no reward model has seen in another split."""

    @classmethod
    def read(cls, path: Path, seed: int, models: Sequence[EvaluatedScorer]) -> JudgedPairs:
        """Reads a canonical file.

        Args:
            path: of the pairs.
            seed: of the split.
            models: reward models of ours that are merged.

        Raises:
            ValueError: a part has no row.
        """
        table = load_pairs(path, seed=seed, num_folds=2)
        key_P, part_P = table.split.key_N, table.split.part_N
        is_seen_P = np.zeros(len(key_P), np.bool_)
        for model in models:
            is_seen_P |= model.is_seen(key_P)
        parts = {
            "select": (part_P == "select") | ((part_P == "train") & ~is_seen_P),
            "calibrate": part_P == "calibrate",
            "test": (part_P == "test") & ~is_seen_P,
        }
        rows = {name: np.flatnonzero(is_in_P) for name, is_in_P in parts.items()}
        if not all(map(len, rows.values())):
            counts = ", ".join(f"{len(at)} of {name}" for name, at in rows.items())
            raise ValueError(
                f"of the pairs there are {counts}, and each part needs some: give more `--pairs`"
            )
        return cls(path, table, **rows)

    def accuracy(self, margin_P: Array, rows: Ints) -> float:
        """Returns the share of some pairs that is ordered right, mean over sources."""
        sources = self.table.source_P[rows]
        each = [accuracy(margin_P[rows[sources == source]]) for source in sorted(set(sources))]
        return float(np.nanmean(each))


@dataclass(frozen=True, slots=True)
class ScoredShare:
    """Holds the pairs' margins under the merge at one share."""

    margin_P: Array
    fit: MergedFit | None
    """Numbers on the merged model's own scores; None of one that keeps its own or has none."""

    @classmethod
    def read(cls, file: Path) -> ScoredShare:
        """Reads what `write` wrote."""
        arrays = np.load(file, allow_pickle=False)
        centers, scales = (tuple(arrays[name].tolist()) for name in ("centers", "scales"))
        fit = MergedFit(float(arrays["temperature"]), centers, scales) if scales else None
        return cls(arrays["margins"], fit)

    def write(self, file: Path) -> None:
        """Writes the arrays, so that a run that was killed goes on behind them."""
        fit = self.fit or MergedFit(float("nan"), (), ())
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial, partial.open("wb") as opened:
            np.savez(
                opened,
                margins=self.margin_P,
                temperature=fit.temperature,
                centers=fit.centers,
                scales=fit.scales,
            )


def scored_share(
    scorer: EvaluatedScorer, result: TextScores, pairs: JudgedPairs, *, is_refit: bool
) -> ScoredShare:
    """Returns the margins of a merged model, with its numbers fitted on *calibrate*.

    Args:
        scorer: the merged model.
        result: its scores.
        pairs: the pairs.
        is_refit: whether the numbers of a model of ours are fitted; else it keeps what it has.
    """
    score_N, fit = result.scores["score"], None
    chosen, rejected = result.rows(pairs.table.chosen_P), result.rows(pairs.table.rejected_P)
    manifest = scorer.manifest
    if isinstance(manifest, ScalarManifest) and is_refit:
        assert result.members_NK is not None
        rows = np.union1d(chosen[pairs.calibrate], rejected[pairs.calibrate])
        fit, z_NK = restandardized(manifest, result.members_NK, rows)
        if len(fit.scales) > 1:
            rule = pooled_rule(manifest.rule, manifest.caution)
            score_N = pooled(rule, z_NK.T, np.ones(len(fit.scales)))
    margin_P = score_N[chosen] - score_N[rejected]
    if fit:
        fit = MergedFit(temperature(margin_P, pairs), fit.centers, fit.scales)
    return ScoredShare(margin_P, fit)


def restandardized(
    manifest: ScalarManifest, members_NK: Array, rows: Ints
) -> tuple[MergedFit, Array]:
    """Returns the centers and scales of the heads on some texts, and scores in their unit.

    Args:
        manifest: with the centers and scales that the members are standardized by.
        members_NK: standardized scores of the heads.
        rows: texts of which the new ones are.
    """
    center_K, scale_K = np.array(manifest.centers), np.array(manifest.scales)
    mean_K, deviation_K = members_NK[rows].mean(0), members_NK[rows].std(0)
    centers, scales = center_K + scale_K * mean_K, scale_K * deviation_K
    fit = MergedFit(1.0, tuple(centers.tolist()), tuple(scales.tolist()))
    return fit, (members_NK - mean_K) / deviation_K


def temperature(margin_P: Array, pairs: JudgedPairs) -> float:
    """Returns what margins are divided by to be log odds; infinite where they say nothing."""
    scale = fit_scale(margin_P[pairs.calibrate])
    return 1 / scale if scale else float("inf")


def best_share(pairs: JudgedPairs, scored: Mapping[float, ScoredShare]) -> float:
    """Returns the share that orders most pairs of *select* right; of equals the smallest.

    It is 0, the reward model alone, where the gain over that is within one standard error: among
    many shares that do nothing the best one is above 0 by chance.
    """
    rows = pairs.select
    best = max(sorted(scored), key=lambda share: pairs.accuracy(scored[share].margin_P, rows))
    gain_P = wins(scored[best].margin_P) - wins(scored[ALONE].margin_P)
    sources = pairs.table.source_P[rows]
    gains = [gain_P[rows[sources == source]] for source in sorted(set(sources))]
    gains = [gain[~np.isnan(gain)] for gain in gains]  # of pairs that lack a score nothing is known
    gains = [gain for gain in gains if len(gain) > 1]
    if not gains:
        return ALONE
    error = math.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains)) / len(gains)
    return best if np.mean([gain.mean() for gain in gains]) > error else ALONE


def share_report(
    pairs: JudgedPairs, scored: Mapping[float, ScoredShare], share: float
) -> dict[str, Any]:
    """Returns the accuracies over the shares, and what the chosen one gained on *test*."""
    table, test = pairs.table, pairs.test
    curve: dict[str, dict[str, float]] = {}
    for tried, each in scored.items():
        parts = {"select": pairs.select, "test": test}
        curve[f"{tried:g}"] = {n: pairs.accuracy(each.margin_P, at) for n, at in parts.items()}
    margins = {"merged": scored[share].margin_P, "alone": scored[ALONE].margin_P}
    gains: dict[str, Any] = {}
    for source in (ALL_SOURCES, *sorted(set(table.source_P[test]))):
        rows = test if source == ALL_SOURCES else test[table.source_P[test] == source]
        (difference,) = compare(margins, table, rows, [("merged", "alone")]).values()
        accuracies = {name: pairs.accuracy(margin_P, rows) for name, margin_P in margins.items()}
        gains[source] = {"pairs": len(rows), **accuracies, **difference}
    return {
        "curve": curve,
        "gains": gains,
        "at_random": float(np.mean([curve[f"{t:g}"]["test"] for t in scored if t])),
        "temperature": temperature(scored[share].margin_P, pairs),
        "num_pairs": {"select": len(pairs.select), "test": len(test)},
    }


def described(names: Sequence[str], merge: Merge) -> list[dict[str, Any]]:
    """Returns of each model its weight, its head, its distance and what it was trained on.

    Args:
        names: of the models and the base as the user named them.
        merge: the models.
    """
    heads = ["merged" if equal else "left out" for equal in merge.are_equals]
    heads[0] = "merged" if sum(merge.are_equals) > 1 else "kept"
    models: list[dict[str, Any]] = []
    for name, model, apart in zip(
        filter(None, names), (merge.first, *merge.others), (0.0, *merge.distances), strict=True
    ):
        is_base = model is merge.base
        record = model.manifest
        models.append(
            {
                "model": name,
                "weight": None if is_base else merge.weights[len(models)],
                "head": "base" if is_base else heads[len(models)],
                "distance": apart,
                "sources": list(record.sources) if record else [],
                "pairs": record.data.get("pairs", {}).get("rows") if record else None,
            }
        )
    return models


def token_counts(merge: Merge) -> dict[str, int]:
    """Returns how many tokens the tokenizer gained, and how many of other models it lacks."""
    if (vocabulary := merge.vocabulary) is None:
        return {"gained": 0, "left_out": 0}
    left_out = sum(rows.num_left_out for rows in vocabulary.shared)
    return {"gained": len(vocabulary.gained), "left_out": left_out}
