"""Calibration: whether a score difference is a probability, sigma(margin) = P(chosen wins).

Scores of different models live on different scales, so each gets its own scale before its
probabilities are compared. Confidence is that of the predicted winner, between 1/2 and 1.

Shapes: P pairs, B bins. A margin is score(chosen) - score(rejected).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.special import expit

from panoply.types import Array, Ints

NUM_BINS = 10
FEWEST_IN_BIN = 5
"""Pairs below which the share that won says nothing."""
MAX_MEAN_MARGIN = 1e3
"""The scale stops where the mean of |scale * margin| is this: separable data have no optimum."""


def fit_scale(margins_P: ArrayLike, weights_P: ArrayLike | None = None) -> float:
    """Returns a = argmin_{a >= 0} mean log(1 + exp(-a m)), the scale that fits the margins best.

    1 / a is the temperature. The problem is convex. Where no margin is negative the loss falls
    forever, and a stops at MAX_MEAN_MARGIN / mean |m|. Where the margins say nothing or point the
    wrong way, a is 0. Missing margins (NaN) are left out.

    Raises:
        ValueError: no margin is left, a margin is infinite, or the weights are negative or all 0.
    """
    margins = np.asarray(margins_P, np.float64)
    weights = np.ones_like(margins) if weights_P is None else np.asarray(weights_P, np.float64)
    if weights.shape != margins.shape:
        raise ValueError(f"weights {weights.shape!r} and margins {margins.shape!r} must agree")
    scored = ~np.isnan(margins)
    margins, weights = margins[scored], weights[scored]
    if not len(margins):
        raise ValueError("there are no margins to fit a scale on; check the pairs and the split")
    if not np.isfinite(margins).all():
        raise ValueError("a margin is infinite; scores must be finite, or NaN where missing")
    if not ((weights >= 0).all() and 0 < weights.sum() < np.inf):
        raise ValueError("weights must be finite and >= 0, and not all of them 0")
    weights = weights / weights.sum()
    if not (size := float(weights @ np.abs(margins))):
        return 0.0
    margins = margins / size  # so that the search does not depend on the unit of the scores

    def slope(a: float) -> float:
        return -float(weights @ (margins * expit(-a * margins)))

    if slope(0.0) >= 0:
        return 0.0
    if slope(MAX_MEAN_MARGIN) <= 0:
        return MAX_MEAN_MARGIN / size
    solution = root_scalar(slope, bracket=(0.0, MAX_MEAN_MARGIN), method="brentq", xtol=1e-12)
    return float(solution.root) / size


def log_loss(margins_P: ArrayLike) -> float:
    """Returns the mean of -log sigma(margin), in nats. Missing margins (NaN) are left out."""
    margins = _scored(margins_P)
    return float(np.logaddexp(0, -margins).mean()) if len(margins) else float("nan")


def ece(margins_P: ArrayLike) -> float:
    """Returns the expected calibration error of the predicted winner.

    sum_b n_b / n |accuracy_b - confidence_b| over NUM_BINS equal bins of sigma(|margin|) in
    [1/2, 1], where a tie counts as half a win. Missing margins (NaN) are left out.
    """
    margins = _scored(margins_P)
    confidence, won, bins = _winners(margins)
    return _gap(won - confidence, bins) if len(margins) else float("nan")


def ece_floor(margins_P: ArrayLike, draws: int = 200, seed: int = 0) -> float:
    """Returns the mean ECE of a model with these confidences that is perfectly calibrated.

    A finite sample has an ECE above 0 even then; an ECE near this floor is no evidence against the
    model. Each draw lets the predicted winner win with the stated confidence.
    """
    margins = _scored(margins_P)
    if not len(margins):
        return float("nan")
    confidence, _, bins = _winners(margins)
    tied = margins == 0
    rng = np.random.default_rng(seed)
    gaps: list[float] = []
    for _ in range(draws):  # one draw at a time: memory stays flat in draws
        won = np.where(tied, 0.5, rng.random(len(margins)) < confidence)
        gaps.append(_gap(won - confidence, bins))
    return float(np.mean(gaps))


def reliability(margins_P: ArrayLike) -> dict[str, list[float]]:
    """Returns the reliability curve: `count`, `confidence` and `accuracy` of bins of equal size.

    There are at most NUM_BINS bins, of FEWEST_IN_BIN pairs or more, ordered by confidence. Fewer
    pairs are no bin.
    """
    confidence, won, _ = _winners(_scored(margins_P))
    order = np.argsort(confidence, kind="stable")
    num_bins = min(NUM_BINS, len(order) // FEWEST_IN_BIN)
    bins = np.array_split(order, num_bins) if num_bins else []
    return {
        "count": [float(len(rows)) for rows in bins],
        "confidence": [float(confidence[rows].mean()) for rows in bins],
        "accuracy": [float(won[rows].mean()) for rows in bins],
    }


def _scored(margins_P: ArrayLike) -> Array:
    margins = np.asarray(margins_P, np.float64)
    return margins[~np.isnan(margins)]


def _winners(margins: Array) -> tuple[Array, Array, Ints]:
    """Returns the predicted winner's confidence, whether it won (a tie: half), and its bin."""
    confidence = expit(np.abs(margins))
    bins = np.minimum((confidence - 0.5) * 2 * NUM_BINS, NUM_BINS - 1).astype(np.int64)
    return confidence, (np.sign(margins) + 1) / 2, bins


def _gap(excess: Array, bins: Ints) -> float:
    return float(np.abs(np.bincount(bins, weights=excess)).sum() / len(excess))
