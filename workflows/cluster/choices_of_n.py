"""Choices among n samples by each strategy: how good they are, and where more made them worse.

Shapes: K arms, n samples of a prompt, P prompts, S sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from panoply.config.laser import ENSEMBLES, LASER
from panoply.laser.ensembles import chosen_scores
from panoply.measure.best_of_n import expected_best, fitted_curve, kl_of, turn_down
from panoply.measure.intervals import mean_interval
from panoply.types import Array

ANY_RIGHT = "any right"
"""Row of an upper bound: the best of the n responses by gold itself."""

Rankings: TypeAlias = Mapping[str, Sequence[Array]]
"""By strategy, the score of each sample of each prompt."""


def rank_responses(
    scores: Sequence[Array], arms: Sequence[str], routes: Sequence[str] = ()
) -> Rankings:
    """Returns the score of each response by every strategy, on all samples of its prompt.

    Args:
        scores: of each prompt `[K, n]`.
        arms: names of the arms.
        routes: arm that a bandit picks for each prompt; empty: there is no bandit.
    """
    rankings: dict[str, list[Array]] = {}
    if routes:
        places = [arms.index(arm) for arm in routes]
        rankings[LASER] = [each[k] for each, k in zip(scores, places, strict=True)]
    for k, arm in enumerate(arms):
        rankings[arm] = [each[k] for each in scores]
    for ensemble in ENSEMBLES:
        rankings[ensemble] = [chosen_scores(ensemble, each) for each in scores]
    return rankings


def measure(
    rankings: Rankings, golds: Sequence[Array], sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns gold by strategy and n, and how far each strategy is over-optimized.

    Proxies have no common unit: each is shown in deviations of its scores of all samples.

    Args:
        rankings: scores of all samples by each strategy.
        golds: of each prompt what its samples are worth `[n]`.
        sizes: numbers n, ascending from 1.
    """
    shares: dict[str, Any] = {}
    optimization: dict[str, Any] = {}
    for name, scores in rankings.items():
        gold_PS = expected_of_all(scores, golds, sizes)
        shares[name] = _by_size(gold_PS, sizes)
        turn = turn_down(gold_PS)
        peak = turn.pop("peak")
        optimization[name] = {
            "proxy": dict(zip(map(str, sizes), _risen(scores, sizes), strict=True)),
            "peak": sizes[int(peak)] if isinstance(peak, float) and math.isfinite(peak) else None,
            "turn": turn,
            "fit": fitted_curve(gold_PS, sizes),
        }
    # Who knew gold would choose a right response wherever there is one.
    shares[ANY_RIGHT] = _by_size(expected_of_all(golds, golds, sizes), sizes)
    kl = {str(n): kl_of(n) for n in sizes}
    return {"best_of_n": shares, "optimization": {"kl": kl, "strategies": optimization}}


def expected_of_all(
    proxies: Sequence[Array], golds: Sequence[Array], sizes: Sequence[int]
) -> Array:
    """Returns the expected gold of the best of n of each prompt, `[P, S]`."""
    rows = [expected_best(a, b, sizes) for a, b in zip(proxies, golds, strict=True)]
    return np.stack(rows)


def _risen(scores: Sequence[Array], sizes: Sequence[int]) -> list[float]:
    """Returns by how many of their deviations the scores of the chosen rise above one sample's.

    A strategy that tells no samples apart rises by 0.
    """
    proxy_PS = expected_of_all(scores, scores, sizes)
    every = np.concatenate(list(scores))
    spread = float(np.nanstd(every)) if np.isfinite(every).any() else math.nan
    rises = [_mean(proxy_P - proxy_PS[:, 0]) for proxy_P in proxy_PS.T]
    return [rise / spread if spread else 0.0 for rise in rises]


def _by_size(gold_PS: Array, sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Returns the mean over prompts and its interval by n."""
    return {
        str(n): {"value": _mean(gold_P), "ci95": mean_interval(gold_P)}
        for n, gold_P in zip(sizes, gold_PS.T, strict=True)
    }


def _mean(values_P: Array) -> float:
    finite = values_P[np.isfinite(values_P)]
    return float(finite.mean()) if len(finite) else float("nan")
