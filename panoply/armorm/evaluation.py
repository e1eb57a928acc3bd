"""Metrics of stage 1: how well objectives are predicted, and how far length is out of them.

Legend: `N` ratings, `P` pairs, `O` objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from panoply.armorm.debias import Penalties, difference_spearman, length_spearman
from panoply.armorm.mixtures import fit_simplex
from panoply.armorm.out_of_fold import FoldedRidge
from panoply.armorm.pair_features import PairValues
from panoply.data.features import FeatureRows
from panoply.data.tables import PairTable, RatingTable
from panoply.measure.intervals import percentiles, resampled_spearman
from panoply.measure.metrics import pair_metrics, regression_metrics, spearman
from panoply.types import Array, Ints

OBJECTIVE_DRAWS = 300
DEBIAS_DRAWS = 200
"""Resamples of an interval; there are many intervals."""
SIGNAL_MARGIN = 0.05
"""Rank correlation that an objective has to add to the prompt alone to count as signal."""


def report_objectives(
    ratings: RatingTable,
    texts: FeatureRows,
    prompts: FeatureRows,
    rated: FoldedRidge,
    prompt_alone: FoldedRidge,
) -> dict[str, dict[str, Any]]:
    """Returns metrics of each objective on *test*, beside length alone and the prompt alone.

    `signal` is decided where there are most rows, on out-of-fold values of *train*: the rank
    correlation has to be above 0 beyond its interval, and above the prompt alone by SIGNAL_MARGIN.

    Args:
        ratings: with the labels.
        texts: features of the rated responses.
        prompts: features of their prompts.
        rated: fitted to `texts`.
        prompt_alone: the same objectives fitted to `prompts`.
    """
    values_NO = rated.predict(texts, ratings.split.fold_N)
    prompt_alone_NO = prompt_alone.predict(prompts, ratings.split.fold_N)
    report: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(ratings.objectives):
        metrics: dict[str, Any] = {}
        for prefix, rows in (("", ratings.split.of("test")), ("oof_", ratings.split.of("train"))):
            label, alone = ratings.labels_NO[rows, i], prompt_alone_NO[rows, i]
            in_part: dict[str, Any] = dict(
                regression_metrics(
                    values_NO[rows, i],
                    label,
                    ratings.length_N[rows],
                    ratings.split.key_N[rows],
                    draws=OBJECTIVE_DRAWS,
                )
            )
            compared = ~np.isnan(label) & ~np.isnan(alone)
            in_part["prompt_spearman"] = spearman(alone[compared], label[compared])
            metrics |= {f"{prefix}{key}": value for key, value in in_part.items()}
        beyond_chance = metrics["oof_spearman_ci95"][0] > 0
        by_prompt = np.nan_to_num(metrics["oof_prompt_spearman"])
        beyond_prompt = metrics["oof_spearman"] > by_prompt + SIGNAL_MARGIN
        metrics["signal"] = bool(beyond_chance and beyond_prompt)
        metrics["strength"] = float(rated.full.strength[i])
        report[name] = metrics
    return report


def report_debias(
    values: PairValues, penalties: Penalties, pairs: PairTable, before_PO: Array, after_PO: Array
) -> dict[str, Any]:
    """Returns rank correlations with predicted length before and after, in sample and held out.

    Args:
        values: r and r_v.
        penalties: the fit.
        pairs: the pairs.
        before_PO: g(x) of a gate trained on r.
        after_PO: g(x) of the gate trained on r'.
    """
    train, test = pairs.split.of("train"), pairs.split.of("test")
    debiased = values.debiased(penalties)
    varies_O = ~penalties.constant
    before = length_spearman(*values.stacked(train))
    after = length_spearman(*debiased.stacked(train))
    held_out = length_spearman(*debiased.stacked(test))
    held_out_before = length_spearman(*values.stacked(test))
    within_source = length_spearman(*debiased.stacked(train), np.tile(pairs.source_P[train], 2))
    length_difference_P = values.length_2P[0] - values.length_2P[1]
    within_pair = difference_spearman(debiased.difference()[train], length_difference_P[train])

    def named(rho_O: Array) -> dict[str, float]:
        return dict(zip(values.names, map(float, rho_O), strict=True))

    def largest(rho_O: Array) -> float:
        return float(np.nanmax(np.abs(rho_O[varies_O]))) if varies_O.any() else float("nan")

    return {
        "penalties": named(penalties.penalty),
        "constant": [n for n, c in zip(values.names, penalties.constant, strict=True) if c],
        "max_abs_spearman_before": largest(before),
        "max_abs_spearman_after": largest(after),
        "before": named(before),
        "after": named(after),
        "heldout": {
            "max_abs_spearman": largest(held_out),
            "max_abs_spearman_before": largest(held_out_before),
            "before": named(held_out_before),
            # The deviation of a rank correlation of rows that have nothing to do with each other.
            "noise": float(1 / np.sqrt(2 * len(test) - 1)),
            "after": named(held_out),
            "ci95": _intervals(debiased, pairs, test),
            "n": float(2 * len(test)),
        },
        "within_source": named(within_source),
        "within_pair": named(within_pair),
        **_report_scores({"before": (values, before_PO), "after": (debiased, after_PO)}, pairs),
    }


def _intervals(debiased: PairValues, pairs: PairTable, rows: Ints) -> dict[str, list[float]]:
    r, r_v = debiased.stacked(rows)
    groups = np.tile(pairs.split.key_N[rows], 2)
    return {
        name: percentiles(resampled_spearman(r[:, i], r_v, groups, DEBIAS_DRAWS))
        for i, name in enumerate(debiased.names)
    }


def _report_scores(
    gated: Mapping[str, tuple[PairValues, Array]], pairs: PairTable
) -> dict[str, dict[str, Any]]:
    """Returns what debiasing does to scores: each scorer is fitted on r (before) and r' (after).

    `score` is the held-out rank correlation of the gated score with predicted and actual length,
    `accuracy` that of gate and best fixed weights where the chosen response is longer or shorter.
    """
    train, test = pairs.split.of("train"), pairs.split.of("test")
    length = np.concatenate([pairs.chosen_length_P[test], pairs.rejected_length_P[test]])
    sources = np.tile(pairs.source_P[test], 2)
    score: dict[str, float] = {}
    accuracy: dict[str, dict[str, Any]] = {"gate": {}, "best_fixed": {}}
    for name, (values, gate_PO) in gated.items():
        gated_2P = (gate_PO * values.values_2PO).sum(-1)[:, test]
        flat, r_v = gated_2P.reshape(-1), values.length_2P[:, test].reshape(-1)
        score[name], score[f"actual_{name}"] = spearman(flat, r_v), spearman(flat, length)
        score[f"{name}_within_source"] = float(length_spearman(flat[:, None], r_v, sources)[0])
        difference_PO = values.difference()
        fixed_P = difference_PO[test] @ fit_simplex(difference_PO[train]).weights
        accuracy["gate"][name] = _strata(gated_2P[0] - gated_2P[1], pairs, test)
        accuracy["best_fixed"][name] = _strata(fixed_P, pairs, test)
    return {"score": score, "accuracy": accuracy}


def _strata(margin: Array, pairs: PairTable, rows: Ints) -> dict[str, Any]:
    metrics = pair_metrics(margin, pairs.gap_P[rows], pairs.split.key_N[rows], draws=2)
    return {name: metrics[f"accuracy_{name}"] for name in ("chosen_longer", "chosen_shorter")}
