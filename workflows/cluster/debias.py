"""Taking length out of the objectives, and reporting how far out it is.

Legend: `P` pairs, `O` objectives; arrays of chosen and rejected responses come stacked `[2, P]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from panoply.armorm.debias import (
    Penalties,
    difference_spearman,
    length_penalties,
    length_spearman,
    remove_length,
)
from panoply.armorm.mixtures import fit_simplex
from panoply.data.tables import PairTable
from panoply.measure.intervals import percentiles, resampled_spearman
from panoply.measure.metrics import pair_metrics, spearman
from panoply.types import Array, Ints

DRAWS = 200


@dataclass(frozen=True, slots=True)
class PairValues:
    """Objective values and predicted log length of both responses of each pair."""

    names: tuple[str, ...]
    values_2PO: Array
    length_2P: Array

    def stacked(self, rows: Ints) -> tuple[Array, Array]:
        """Returns r `[2n, O]` and r_v `[2n]` of some pairs."""
        values = self.values_2PO[:, rows].reshape(-1, len(self.names))
        return values, self.length_2P[:, rows].reshape(-1)

    def debiased(self, penalties: Penalties) -> Array:
        """Returns r' `[2, P, O]`."""
        flat = remove_length(
            self.values_2PO.reshape(-1, len(self.names)),
            self.length_2P.reshape(-1),
            penalties.penalty,
        )
        return flat.reshape(self.values_2PO.shape)


def fit_penalties(values: PairValues, train: Ints) -> Penalties:
    """Fits lambda on the responses of the training pairs (out-of-fold values)."""
    return length_penalties(*values.stacked(train))


def report_debias(
    values: PairValues, penalties: Penalties, pairs: PairTable, gates_PO: tuple[Array, Array]
) -> dict[str, Any]:
    """Rank correlation with predicted length before and after, in sample and held out.

    Args:
        values: r and r_v.
        penalties: the fit.
        pairs: the pairs.
        gates_PO: g(x) `[P, O]` of a gate trained on r, and of the one trained on r'.
    """
    train, test = pairs.split.of("train"), pairs.split.of("test")
    after = PairValues(values.names, values.debiased(penalties), values.length_2P)
    live = ~penalties.constant
    before_O, after_O = (length_spearman(*v.stacked(train)) for v in (values, after))
    heldout_O = length_spearman(*after.stacked(test))
    sources = np.tile(pairs.source_P[train], 2)
    within_O = length_spearman(*after.stacked(train), sources)
    d_PO = after.values_2PO[0, train] - after.values_2PO[1, train]
    inside_O = difference_spearman(d_PO, values.length_2P[0, train] - values.length_2P[1, train])

    def named(rho_O: Array) -> dict[str, float]:
        return dict(zip(values.names, map(float, rho_O), strict=True))

    def largest(rho_O: Array) -> float:
        return float(np.nanmax(np.abs(rho_O[live]))) if live.any() else float("nan")

    return {
        "penalties": named(penalties.penalty),
        "constant": [n for n, c in zip(values.names, penalties.constant, strict=True) if c],
        "max_abs_spearman_before": largest(before_O),
        "max_abs_spearman_after": largest(after_O),
        "before": named(before_O),
        "after": named(after_O),
        "heldout": {
            "max_abs_spearman": largest(heldout_O),
            "after": named(heldout_O),
            "ci95": _intervals(after, pairs, test),
            "n": float(2 * len(test)),
        },
        "within_source": named(within_O),
        "within_pair": named(inside_O),
        **_scores((values, after), pairs, gates_PO),
    }


def _intervals(after: PairValues, pairs: PairTable, rows: Ints) -> dict[str, list[float]]:
    r, r_v = after.stacked(rows)
    groups = np.tile(pairs.split.key_N[rows], 2)
    return {
        name: percentiles(resampled_spearman(r[:, i], r_v, groups, DRAWS))
        for i, name in enumerate(after.names)
    }


def _scores(
    when: tuple[PairValues, PairValues], pairs: PairTable, gates_PO: tuple[Array, Array]
) -> dict[str, dict[str, Any]]:
    """What debiasing does to scores: each scorer is fitted on r (before) and on r' (after).

    `score` is the held-out rank correlation of the gated score with predicted and actual length,
    `accuracy` that of gate and best fixed weights where the chosen response is longer or shorter.
    """
    train, test = pairs.split.of("train"), pairs.split.of("test")
    r_v = when[0].length_2P[:, test].reshape(-1)
    actual = np.concatenate([pairs.chosen_length_P[test], pairs.rejected_length_P[test]])
    sources = np.tile(pairs.source_P[test], 2)
    score: dict[str, float] = {}
    accuracy: dict[str, dict[str, Any]] = {"gate": {}, "best_fixed": {}}
    for name, v, gate_PO in zip(("before", "after"), when, gates_PO, strict=True):
        gated_2P = (gate_PO * v.values_2PO).sum(-1)[:, test]
        flat = gated_2P.reshape(-1)
        score[name], score[f"actual_{name}"] = spearman(flat, r_v), spearman(flat, actual)
        score[f"{name}_within_source"] = float(length_spearman(flat[:, None], r_v, sources)[0])
        d = v.values_2PO[0] - v.values_2PO[1]
        accuracy["gate"][name] = _strata(gated_2P[0] - gated_2P[1], pairs, test)
        accuracy["best_fixed"][name] = _strata(d[test] @ fit_simplex(d[train]).weights, pairs, test)
    return {"score": score, "accuracy": accuracy}


def _strata(margin: Array, pairs: PairTable, rows: Ints) -> dict[str, Any]:
    own = pair_metrics(margin, pairs.gap_P[rows], pairs.split.key_N[rows], draws=2)
    return {name: own[f"accuracy_{name}"] for name in ("chosen_longer", "chosen_shorter")}
