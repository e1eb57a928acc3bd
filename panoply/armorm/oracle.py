"""The planted world's truth beside a gate: the oracle's weights, and how much of them it finds.

Legend: `P` pairs, `O` objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from panoply.synthetic.planted import Truth
from panoply.types import Array, Strings


def oracle_weights(truth: Truth, objectives: tuple[str, ...], domain_P: Strings) -> Array:
    """Returns the planted weights on the rated objectives, `[P, O]`.

    Sources that rate one attribute share its weight.
    """
    attributes = [truth.objectives.get(name) for name in objectives]
    by_domain: dict[str, Array] = {}
    for domain, planted in zip(truth.domains, truth.weights, strict=True):
        weights_O = np.zeros(len(objectives))
        for i, attribute in enumerate(attributes):
            if attribute is not None:
                num_raters = attributes.count(attribute)
                weights_O[i] = planted[truth.attributes.index(attribute)] / num_raters
        by_domain[domain] = weights_O
    return np.stack([by_domain[str(domain)] for domain in domain_P])


def weight_correlation(
    truth: Truth,
    objectives: tuple[str, ...],
    weights_PO: Array,
    domain_P: Strings,
    deviation_O: Array,
) -> float:
    """Returns the correlation of the gate's mean weights by domain with the planted ones.

    Both in units of what they move: the gate's weights times the deviation of r'_i, the planted
    ones times the deviation of the attribute; sources of one attribute summed, and the mean over
    domains taken away, since only what differs between domains is the gate's to find.
    """
    gate = np.zeros((len(truth.domains), len(truth.attributes)))
    for d, domain in enumerate(truth.domains):
        rows = domain_P == domain
        mean_O = weights_PO[rows].mean(0) * deviation_O if rows.any() else deviation_O * np.nan
        for i, name in enumerate(objectives):
            if (attribute := truth.objectives.get(name)) is not None:
                gate[d, truth.attributes.index(attribute)] += mean_O[i]
    deviation = np.array([truth.responses[a].to_numpy().std() for a in truth.attributes])
    planted = truth.weights * deviation
    in_data = ~np.isnan(gate).any(1)
    a = gate[in_data] - gate[in_data].mean(0)
    b = planted[in_data] - planted[in_data].mean(0)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def report_planted(pairs: Mapping[str, Any], correlation: float) -> dict[str, float]:
    """Returns how far the gate gets from the best fixed weights to the oracle.

    Args:
        pairs: metrics by scorer.
        correlation: see `weight_correlation`.
    """
    accuracy = {name: float(pairs[name]["accuracy"]) for name in ("oracle", "gate", "best_fixed")}
    gain, possible = accuracy["gate"] - accuracy["best_fixed"], float("nan")
    if accuracy["oracle"] > accuracy["best_fixed"]:
        possible = accuracy["oracle"] - accuracy["best_fixed"]
    return {**accuracy, "recovered": gain / possible, "weight_correlation": correlation}
