"""Composites of recorded reward models: `python -m evidence.composites --scores FILE --json OUT`.

FILE is a Parquet table with a row for each candidate answer: `item, candidate, is_correct` and a
column `score_*` for each reward model; each item has one right candidate. Items are split in
halves, 20 times: means, deviations, weights and the best single model come from one half, and
accuracy (the right candidate strictly above all others of its item) from the other.

A hierarchy (ALaRM, arXiv 2403.06754) has the best single model first and the next two as aspects;
its threshold comes from the fitting half. Beside it stands the sum of shaped aspects, without a
threshold; the best single model is the threshold that nothing reaches.

The fitted sum has Bradley-Terry weights that are not negative; `of the three best` are the models
that are best on the fitting half.

Shapes: K models, I items, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import over_seeds, run, write_figures
from panoply.config.composite import (
    LowerBound,
    Mean,
    Median,
    Minimum,
    PooledRule,
    VariancePenalty,
    WeightedSum,
)
from panoply.scorers.composite.fitting import fit_weights
from panoply.scorers.composite.rules import hierarchy, pooled
from panoply.types import Array, Bools, Ints

RULES: Mapping[str, PooledRule] = {
    "mean": Mean(),
    "median": Median(),
    "minimum (WCO)": Minimum(),
    "LCB, beta 1": LowerBound(),
    "UWO, lambda .5": VariancePenalty(),
    "fitted sum": WeightedSum(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    scores: Path
    """Table of scores."""
    splits: int = 20
    """Splits of the items in halves."""


def read_scores(path: Path) -> tuple[list[str], Array, Bools]:
    """Returns the models, their scores `[K, I, C]`, and which candidate is right `[I, C]`."""
    table = pq.read_table(path).to_pandas().sort_values(["item", "candidate"])
    num = table.item.nunique()
    names = [name for name in table.columns if name.startswith("score_")]
    scores_KIC = np.array([table[name].to_numpy(np.float64).reshape(num, -1) for name in names])
    right_IC = table.is_correct.to_numpy(np.bool_).reshape(num, -1)
    return [name.removeprefix("score_") for name in names], scores_KIC, right_IC


def accuracy(values_IC: Array, right_IC: Bools) -> float:
    """Returns the share of items whose right candidate is strictly above all others."""
    right = np.where(right_IC, values_IC, -np.inf).max(1)
    return float((right > np.where(right_IC, -np.inf, values_IC).max(1)).mean())


def margins(values_KIC: Array, right_IC: Bools) -> Array:
    """Returns the right candidate's score less each other one's, `[P, K]`."""
    right_KI1 = (values_KIC * right_IC).sum(2, keepdims=True)
    margins_KIC = right_KI1 - values_KIC
    return margins_KIC[:, ~right_IC].T


def combined(rule: PooledRule, z_KIC: Array, weights_K: Array) -> Array:
    """Returns the scores `[I, C]` of a rule."""
    num_models, num_items, size = z_KIC.shape
    return pooled(rule, z_KIC.reshape(num_models, -1), weights_K).reshape(num_items, size)


def one_split(scores_KIC: Array, right_IC: Bools, seed: int) -> dict[str, float]:
    """Returns the accuracy of every rule on one half of the items, fitted on the other."""
    order: Ints = np.random.default_rng(seed).permutation(len(right_IC))
    fitting, judging = order[: len(order) // 2], order[len(order) // 2 :]
    alone = [accuracy(scores[fitting], right_IC[fitting]) for scores in scores_KIC]
    best = int(np.argmax(alone))
    figures = {"best single": accuracy(scores_KIC[best, judging], right_IC[judging])}
    mean_K11 = scores_KIC[:, fitting].mean((1, 2), keepdims=True)
    deviation_K11 = scores_KIC[:, fitting].std((1, 2), keepdims=True)
    spread_KI1 = scores_KIC.std(2, keepdims=True)
    within_KIC = (scores_KIC - scores_KIC.mean(2, keepdims=True)) / np.maximum(spread_KI1, 1e-12)
    scales = {"frozen": (scores_KIC - mean_K11) / deviation_K11, "prompt": within_KIC}
    three_best = np.argsort(alone)[-3:]
    figures |= hierarchies(scales["frozen"][three_best[::-1]], right_IC, fitting, judging)
    for scale, z_KIC in scales.items():
        for models, label in ((np.arange(len(alone)), ""), (three_best, " of the three best")):
            z = z_KIC[models]
            weights = fit_weights(margins(z[:, fitting], right_IC[fitting]))
            for name, rule in RULES.items():
                values = combined(rule, z[:, judging], weights)
                figures[f"{name}{label}, {scale}"] = accuracy(values, right_IC[judging])
    return figures


def hierarchies(z_KIC: Array, right_IC: Bools, fitting: Ints, judging: Ints) -> dict[str, float]:
    """Returns the accuracies of a hierarchy and of the sum of shaped aspects on the judging half.

    Args:
        z_KIC: standardized scores, those of the first part before those of the aspects.
        right_IC: which candidate is right.
        fitting: items that the threshold is chosen on; of equal ones the highest is taken.
        judging: the others.
    """
    weights = np.ones(len(z_KIC) - 1)

    def judged(threshold: float, items: Ints) -> float:
        z_KiC = z_KIC[:, items]
        flat = z_KiC.reshape(len(z_KiC), -1)
        values = hierarchy(flat[0], 1.0, flat[1:], weights, threshold)
        return accuracy(values.reshape(z_KiC.shape[1:]), right_IC[items])

    quantiles = np.quantile(z_KIC[0, fitting], np.linspace(0, 1, 20))
    tried = [-np.inf, *quantiles.tolist(), np.inf]
    threshold = max(tried, key=lambda each: (judged(each, fitting), each))
    return {
        "hierarchy over the best": judged(threshold, judging),
        "sum of shaped aspects": judged(-np.inf, judging),
    }


def main(options: Options) -> None:
    """Judges the rules and prints a table for RESULTS."""
    _, scores_KIC, right_IC = read_scores(options.scores)
    rows = [one_split(scores_KIC, right_IC, seed) for seed in range(options.splits)]
    figures = {name: _figure(rows, name) for name in rows[0]}
    print(
        "| rule, scale | accuracy | minus best single | splits above it |\n| --- "
        + "| --- " * 3
        + "|"
    )
    for name, figure in figures.items():
        print(
            f"| {name} | {100 * figure['ratio']:.1f} | {100 * figure['minus_best']:+.1f} "
            f"[{100 * figure['least']:+.1f}, {100 * figure['most']:+.1f}] | {figure['above']} of "
            f"{options.splits} |"
        )
    write_figures(options.json, figures)


def _figure(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, Any]:
    differences = [row[name] - row["best single"] for row in rows]
    return over_seeds(
        [row[name] for row in rows],
        minus_best=float(np.mean(differences)),
        least=min(differences),
        most=max(differences),
        above=sum(difference > 0 for difference in differences),
    )


if __name__ == "__main__":
    run(main, Options)
