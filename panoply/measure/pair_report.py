"""Report of scorers on pairs: metrics pooled, macro over sources and per source.

Legend: `P` pairs, `O` objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoply.data.tables import PairTable
from panoply.measure.calibration import ece, ece_floor, fit_scale, log_loss
from panoply.measure.intervals import macro_interval, paired_interval
from panoply.measure.metrics import Metrics, macro, pair_metrics
from panoply.types import Array, Ints, Strings


def fit_logit_scale(margin_P: Array, pairs: PairTable) -> float:
    """Returns the scale 1/T, fitted on *calibrate*, that turns a margin into log odds."""
    return fit_scale(margin_P[pairs.split.of("calibrate")])


def scaled_metrics(margin_P: Array, scale: float, gap_P: Ints, key_P: Strings) -> Metrics:
    """Returns the metrics of one scorer: who wins by its margins, how surely by scale x margin.

    A scale of 0 says that the margins carry no probability: they still rank, and a calibration
    error, which would be a perfect one, is NaN.
    """
    odds_P = margin_P * scale
    errors = {"ece": ece(odds_P), "ece_floor": ece_floor(odds_P)}
    if not scale:
        errors = dict.fromkeys(errors, float("nan"))
    counts = {"num_prompts": float(len(set(key_P[~np.isnan(margin_P)])))}
    return {
        **pair_metrics(margin_P, gap_P, key_P),
        **counts,
        "log_loss": log_loss(odds_P),
        **errors,
    }


def report_pairs(
    margins: Mapping[str, Array], pairs: PairTable, rows: Ints, scales: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the metrics of every scorer on some rows, pooled, macro over sources and per source.

    Args:
        margins: `[P]` by scorer, in its own unit.
        pairs: the pairs.
        rows: rows to report on.
        scales: scale of margins to log odds by scorer, 1 over its temperature.
    """
    gap, key, source = pairs.gap_P[rows], pairs.split.key_N[rows], pairs.source_P[rows]
    report: dict[str, Any] = {}
    for name, margin_P in margins.items():
        margin, scale = margin_P[rows], scales[name]
        per_source: dict[str, Metrics] = {}
        for each in sorted(set(source)):
            at = source == each
            per_source[str(each)] = scaled_metrics(margin[at], scale, gap[at], key[at])
        between = macro_interval(margin, gap, source, key)
        report[name] = {
            **scaled_metrics(margin, scale, gap, key),
            "temperature": 1 / scale if scale else float("nan"),
            "macro": {**macro(per_source), "ci95_length_balanced": between["ci95"]},
            "per_source": per_source,
        }
    return report


def compare(
    margins: Mapping[str, Array], pairs: PairTable, rows: Ints, names: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Returns paired differences in macro length-balanced accuracy, with intervals."""
    columns = (pairs.gap_P[rows], pairs.source_P[rows], pairs.split.key_N[rows])
    return {
        f"{a} - {b}": paired_interval(margins[a][rows], margins[b][rows], *columns)
        for a, b in names
    }


def weights_by_domain(
    weights_PO: NDArray[np.floating[Any]],
    names: Sequence[str],
    domain_P: Strings,
    rows: Ints,
) -> dict[str, dict[str, float]]:
    """Returns the gate's mean weight on each objective in each domain."""
    weights: dict[str, dict[str, float]] = {}
    for domain in sorted(set(domain_P[rows])):
        mean_O = weights_PO[rows[domain_P[rows] == domain]].mean(0)
        weights[str(domain)] = dict(zip(names, mean_O.tolist(), strict=True))
    return weights
