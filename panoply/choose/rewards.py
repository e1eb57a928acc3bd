"""What the bandit receives: raw values on a scale of their own taken to [-1, 1].

A raw value is better where it is larger: LASeR's is the negative loss of a training step (arXiv
2410.01735, section 3.2). One that is missing or not finite gives NaN, which the bandit rejects, and
leaves no trace in what follows.

Differences from LASeR: quantiles are over a window, not over all of the past, or a falling loss
makes later pulls look better whatever the arm; a constant history gives .5, not 0 / 0; the first
rewards wait until there is a history, and do not enter as they are.

Shapes: N values in the order in which they came, B values of one batch.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]


def quantile_rewards(
    raw_N: ArrayLike, *, low: float = 0.2, high: float = 0.8, window: int = 20, wait: int = 5
) -> Array:
    """Returns the place of each value between two quantiles of the values up to it, in [0, 1].

        R_t = clip((v_t - q_low) / (q_high - q_low), 0, 1),  q over v_{t - window + 1} .. v_t

    Where both quantiles are equal, R is 0 below, .5 at and 1 above them. The first `wait` values
    wait for each other (NaN until then) and share the quantiles over all of them. A value's reward
    depends on the `window` usable values up to it alone, so only these need to be kept.

    Raises:
        ValueError: the quantiles are not ascending in [0, 1], or not 2 <= wait <= window.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles must be 0 <= low < high <= 1, got {low!r} and {high!r}")
    if not 2 <= wait <= window:
        raise ValueError(f"it must hold that 2 <= wait <= window, got {wait!r} and {window!r}")
    raw = np.asarray(raw_N, np.float64)
    usable = np.isfinite(raw)
    values, rewards = raw[usable], np.full(raw.shape, np.nan)
    if len(values) < wait:
        return rewards
    ends = np.maximum(np.arange(len(values)) + 1, wait)
    bounds = [np.quantile(values[max(0, end - window) : end], (low, high)) for end in ends]
    below, above = np.array(bounds).T
    width = above - below
    place = np.divide(values - below, width, out=np.zeros_like(values), where=width > 0)
    flat = (np.sign(values - below) + 1) / 2
    rewards[usable] = np.where(width > 0, np.clip(place, 0, 1), flat)
    return rewards


def advantages(raw_B: ArrayLike, baseline: float, *, decay: float = 0.9) -> tuple[Array, float]:
    """Returns clip(v - baseline, -1, 1) of a batch, and the baseline for the next one.

        baseline <- decay * baseline + (1 - decay) * mean(v)

    The first batch (baseline NaN) is compared with its own mean, as in BayesianRouter (arXiv
    2510.02850); a single value has nothing to be compared with, and gives NaN.

    Raises:
        ValueError: decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"`decay` must be in [0, 1), got {decay!r}")
    raw = np.asarray(raw_B, np.float64)
    usable = np.isfinite(raw)
    if not usable.any():
        return np.full(raw.shape, np.nan), baseline
    mean = float(raw[usable].mean())
    if np.isnan(baseline):
        center, after = (mean if usable.sum() > 1 else np.nan), mean
    else:
        center, after = baseline, decay * baseline + (1 - decay) * mean
    return np.where(usable, np.clip(raw - center, -1, 1), np.nan), after


def improvements(before_B: ArrayLike, after_B: ArrayLike) -> Array:
    """Returns clip(L_before - L_after, -1, 1): how much a step lowered each loss."""
    before, after = np.asarray(before_B, np.float64), np.asarray(after_B, np.float64)
    usable = np.isfinite(before) & np.isfinite(after)
    fell = np.subtract(before, after, out=np.full(before.shape, np.nan), where=usable)
    return np.clip(fell, -1, 1)
