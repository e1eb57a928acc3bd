"""What is known of the planted world: the oracle's weights, and how much of them a gate found."""

from __future__ import annotations

from typing import Any

import numpy as np

from panoply.synthetic.planted import Truth
from panoply.types import Array, Strings


def oracle_weights(truth: Truth, objectives: tuple[str, ...], domain_P: Strings) -> Array:
    """Returns the planted weights on the rated objectives, `[P, O]`.

    Sources that rate one attribute share its weight.
    """
    attributes = [truth.objectives.get(name) for name in objectives]
    raters = {a: attributes.count(a) for a in attributes}
    by_domain = {
        domain: np.array(
            [0.0 if a is None else row[truth.attributes.index(a)] / raters[a] for a in attributes]
        )
        for domain, row in zip(truth.domains, truth.weights, strict=True)
    }
    return np.stack([by_domain[str(domain)] for domain in domain_P])


def weight_correlation(
    truth: Truth,
    objectives: tuple[str, ...],
    weights_PO: Array,
    domain_P: Strings,
    deviation_O: Array,
) -> float:
    """Correlation of the gate's mean weights by domain with the planted ones.

    Both in units of what they move: the gate's weights times the deviation of r'_i, the planted
    ones times the deviation of the attribute; sources of one attribute summed, and the mean over
    domains taken away, since only what differs between domains is the gate's to find.
    """
    found = np.zeros((len(truth.domains), len(truth.attributes)))
    for d, domain in enumerate(truth.domains):
        rows = domain_P == domain
        mean_O = weights_PO[rows].mean(0) * deviation_O if rows.any() else deviation_O * np.nan
        for i, name in enumerate(objectives):
            if (attribute := truth.objectives.get(name)) is not None:
                found[d, truth.attributes.index(attribute)] += mean_O[i]
    spread = np.array([truth.responses[a].to_numpy().std() for a in truth.attributes])
    planted = truth.weights * spread
    seen = ~np.isnan(found).any(1)
    a, b = (w[seen] - w[seen].mean(0) for w in (found, planted))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def report_planted(pairs: dict[str, Any], correlation: float) -> dict[str, float]:
    """Returns how far the gate gets from the best fixed weights to the oracle."""
    oracle, gate, fixed = (
        float(pairs[name]["accuracy"]) for name in ("oracle", "gate", "best_fixed")
    )
    recovered = (gate - fixed) / (oracle - fixed) if oracle > fixed else float("nan")
    return {
        "oracle": oracle,
        "gate": gate,
        "best_fixed": fixed,
        "recovered": recovered,
        "weight_correlation": correlation,
    }
