"""The point of least norm in the convex hull of some gradients (MGDA), from their Gram matrix.

    lambda* = argmin_{lambda >= 0, sum lambda = 1}  || sum_i lambda_i g_i ||^2
            = argmin  lambda' G lambda,   G_ij = g_i . g_j

Legend: `K` gradients.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from panoply.types import Array

MOST_EXACT = 8
"""Up to this many gradients every set of those with weight is tried: at most 255."""


def min_norm(gram_KK: Array) -> Array:
    """Returns lambda* `[K]`: exact for few gradients, by Frank-Wolfe for many."""
    return exact(gram_KK) if len(gram_KK) <= MOST_EXACT else frank_wolfe(gram_KK)


def closest(a: float, b: float, ab: float) -> float:
    """Returns the share of the first of two gradients (arXiv 1810.04650, equation 4).

        t* = clip( (g_2 - g_1) . g_2 / ||g_1 - g_2||^2, 0, 1 )

    Args:
        a: g_1 . g_1.
        b: g_2 . g_2.
        ab: g_1 . g_2.
    """
    apart = a + b - 2 * ab
    return 0.5 if apart <= 0 else min(1.0, max(0.0, (b - ab) / apart))


def exact(gram_KK: Array) -> Array:
    """Returns lambda* by trying every set of gradients that may have weight.

    Within a set S, the least norm on the affine hull solves `G_SS lambda = mu 1, sum lambda = 1`.
    The best of those that lie in the simplex is the least in it.
    """
    size = len(gram_KK)
    scale = max(float(np.trace(gram_KK)) / size, np.finfo(float).tiny)
    gram = gram_KK / scale
    best, least = np.full(size, 1 / size), np.inf
    # Of equally good sets the largest, so that no index is favored.
    for count in range(size, 0, -1):
        for chosen in combinations(range(size), count):
            within = np.ix_(chosen, chosen)
            system = np.block([[gram[within], np.ones((count, 1))], [np.ones((1, count)), 0.0]])
            # Least squares: parallel gradients make the system singular.
            solution = np.linalg.lstsq(system, np.r_[np.zeros(count), 1.0], rcond=1e-12)[0][:count]
            if solution.min() < -1e-9:
                continue
            weight_K = np.zeros(size)
            weight_K[list(chosen)] = np.maximum(solution, 0)
            weight_K /= weight_K.sum()
            norm = float(weight_K @ gram @ weight_K)
            if norm < least - 1e-12:
                best, least = weight_K, norm
    return best


def frank_wolfe(gram_KK: Array, *, max_steps: int = 1000, tolerance: float = 1e-7) -> Array:
    """Returns lambda* by Frank-Wolfe with line search (arXiv 1810.04650, algorithm 2).

    Starts at the best mixture of two, and stops when no single gradient promises to lower the
    squared norm by more than `tolerance` of the mean squared norm.
    """
    size = len(gram_KK)
    scale = max(float(np.trace(gram_KK)) / size, np.finfo(float).tiny)
    gram = gram_KK / scale
    weight_K = _best_two(gram)
    for _ in range(max_steps):
        slope_K = gram @ weight_K
        toward, now = int(np.argmin(slope_K)), float(weight_K @ slope_K)
        if now - slope_K[toward] <= tolerance:
            break
        share = closest(float(gram[toward, toward]), now, float(slope_K[toward]))
        weight_K *= 1 - share
        weight_K[toward] += share
    return weight_K


def _best_two(gram: Array) -> Array:
    size = len(gram)
    if size == 1:
        return np.ones(1)
    best, least = np.full(size, 1 / size), np.inf
    for i, j in combinations(range(size), 2):
        t = closest(float(gram[i, i]), float(gram[j, j]), float(gram[i, j]))
        weight_K = np.zeros(size)
        weight_K[[i, j]] = t, 1 - t
        if (norm := float(weight_K @ gram @ weight_K)) < least:
            best, least = weight_K, norm
    return best
