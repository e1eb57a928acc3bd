"""Best of n by a proxy, judged by gold: expected without bias, for every n from all N samples.

    E_n  = sum_{i=n..N} C(i - 1, n - 1) / C(N, n) gold_(i)     i the rank by the proxy, ascending
    KL_n = log n - (n - 1) / n                                 nats from the policy, at most

E_n is the mean gold of the best of n over all sets of n samples, so that every sample serves every
n; samples that the proxy does not tell apart have their mean gold. With the proxy for gold it is
the proxy's own curve, which only rises: where gold turns down meanwhile, the proxy is
over-optimized (Gao et al., arXiv 2210.10760).

Shapes: N samples of one prompt, P prompts, S sizes n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from panoply.measure.intervals import mean_interval, percentiles, resampled_sums
from panoply.types import Array

FEWEST_SIZES = 4
"""Sizes above 1 below which a curve of two coefficients fits whatever there is."""
LARGEST_REST = 0.01
"""Largest share of the squares of gold's rise that a fit which holds leaves."""


def expected_best(proxy_N: ArrayLike, gold_N: ArrayLike, sizes: Sequence[int]) -> Array:
    """Returns the expected gold of the best of n by a proxy, `[S]`; see the module's equation.

    Samples that lack either number are left out: N is smaller then, and a size beyond it is NaN.

    Args:
        proxy_N: higher is chosen.
        gold_N: what the chosen one is worth.
        sizes: numbers n of samples among which the best is chosen.
    """
    proxy, gold = np.asarray(proxy_N, np.float64), np.asarray(gold_N, np.float64)
    is_judged = np.isfinite(proxy) & np.isfinite(gold)
    proxy, gold = proxy[is_judged], gold[is_judged]
    total = len(proxy)
    values = np.full(len(sizes), np.nan)
    if not total:
        return values
    order = np.argsort(proxy, kind="stable")
    _, group, count = np.unique(proxy[order], return_inverse=True, return_counts=True)
    sorted_gold = (np.bincount(group, weights=gold[order]) / count)[group]
    for place, n in enumerate(sizes):
        if n <= total:
            i = np.arange(n, total + 1)
            all_sets = gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1)
            log_share = gammaln(i) - gammaln(n) - gammaln(i - n + 1) - all_sets
            values[place] = np.exp(log_share) @ sorted_gold[n - 1 :]
    return values


def kl_of(n: int) -> float:
    """Returns the most that best of n is away from the policy: log n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def turn_down(gold_PS: Array, seed: int = 0) -> dict[str, float | list[float]]:
    """Returns how far gold falls from its highest mean over n to that at the largest n.

    It is 0 where more samples never made the choice worse, and negative where the proxy was
    over-optimized. The interval resamples prompts, and takes the highest n anew in every draw.

    Args:
        gold_PS: expected gold of each prompt at each n, ascending; prompts with a NaN are left out.
        seed: of the interval.

    Returns:
        `value` with `ci95`, and the place of the highest n, `peak`, counted from 0.
    """
    whole_PS = gold_PS[np.isfinite(gold_PS).all(1)]
    if not len(whole_PS):
        return {"value": math.nan, "ci95": [math.nan, math.nan], "peak": math.nan}
    mean_S = whole_PS.mean(0)
    sums_BS = resampled_sums(whole_PS, np.arange(len(whole_PS)), seed=seed)
    turns_B = (sums_BS[:, -1] - sums_BS.max(1)) / len(whole_PS)
    return {
        "value": float(mean_S[-1] - mean_S.max()),
        "ci95": percentiles(turns_B),
        "peak": float(mean_S.argmax()),
    }


def fitted_curve(gold_PS: Array, sizes: Sequence[int]) -> dict[str, Any]:
    """Returns the fit of gold's rise over the distance from the policy (Gao et al.).

        gold(n) - gold(1) = d (alpha - beta d),   d = sqrt(KL_n)

    It is least squares over the sizes above 1, and the intervals of alpha and beta resample
    prompts. The form is that of gold which rises first and is bent back, and does not hold
    everywhere: `holds` says whether there are FEWEST_SIZES such sizes, the fit leaves less than
    LARGEST_REST of the rise's squares, and both intervals lie above 0. It says nothing of larger
    sizes.

    Args:
        gold_PS: expected gold of each prompt at each n; prompts with a NaN are left out.
        sizes: numbers n, ascending from 1.

    Returns:
        `alpha` and `beta`, each with `value` and `ci95`; `rest`, the share of the rise's squares
        that is left; and `holds`.
    """
    whole_PS = gold_PS[np.isfinite(gold_PS).all(1)]
    d_S = np.sqrt([kl_of(n) for n in sizes[1:]])
    nothing = {"value": math.nan, "ci95": [math.nan, math.nan]}
    if len(d_S) < FEWEST_SIZES or not len(whole_PS):
        return {"alpha": nothing, "beta": nothing, "rest": math.nan, "holds": False}
    terms_S2 = np.stack([d_S, -np.square(d_S)], axis=1)
    # The fit of a mean curve is the mean of the fits of the prompts' curves.
    rise_PS = whole_PS[:, 1:] - whole_PS[:, :1]
    fits_P2 = rise_PS @ np.linalg.pinv(terms_S2).T
    rise_S, fit_2 = rise_PS.mean(0), fits_P2.mean(0)
    left_S = rise_S - terms_S2 @ fit_2
    squares = float(rise_S @ rise_S)
    rest = float(left_S @ left_S) / squares if squares else math.nan
    fitted: dict[str, dict[str, Any]] = {}
    for name, value, each in zip(("alpha", "beta"), fit_2, fits_P2.T, strict=True):
        fitted[name] = {"value": float(value), "ci95": mean_interval(each)}
    bends = all(entry["ci95"][0] > 0 for entry in fitted.values())
    return {**fitted, "rest": rest, "holds": bends and rest < LARGEST_REST}
