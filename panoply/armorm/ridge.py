"""Stage 1 of ArmoRM: every objective is an exact masked ridge, fitted from sums over rows.

Rating sets rate different things, so a row carries only some objectives. Rows that carry the same
ones share a *pattern*, and their sums (`Moments`) hold all that a ridge needs: rows are seen once,
the sums of immutable blocks add up, and they add up to the same whoever computed them as long as
the order is fixed. All strengths are then solved at once from one eigendecomposition per group of
objectives that were observed on the same patterns. Errors on other rows need only those rows' sums.

Shapes: N rows, D hidden size, O all objectives, P the objectives of one pattern, S strengths.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from panoply.types import Array

Pattern: TypeAlias = tuple[int, ...]
"""The objectives that a row carries: indices, ascending."""


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of one pattern, in float64."""

    num_rows: int
    sum_x: Array
    """[D]"""
    gram: Array
    """[D, D], X'X"""
    sum_y: Array
    """[P]"""
    cross: Array
    """[D, P], X'Y"""
    sum_yy: Array
    """[P], sums of squares"""

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Sums: TypeAlias = Mapping[Pattern, Moments]


class RidgePath(NamedTuple):
    """The solutions for every strength. Objectives without rows have NaN."""

    weights: Array
    """[S, O, D]"""
    bias: Array
    """[S, O]"""


class Ridge(NamedTuple):
    """One solution per objective: value_i = weights_i . x + bias_i."""

    weights: Array
    """[O, D]"""
    bias: Array
    """[O]"""
    strength: NDArray[np.int64]
    """[O], index of the chosen strength; -1 where the objective could not be fitted"""


def moments(x_ND: ArrayLike, y_NP: ArrayLike) -> Moments:
    """Returns the sums of rows that carry the same objectives.

    Raises:
        ValueError: the shapes disagree, or a feature or rating is not finite.
    """
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_NP, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"features {x.shape!r} and ratings {y.shape!r} must be [N, D] and [N, P]")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features and ratings must be finite; quarantine the rows that are not")
    return Moments(len(x), x.sum(0), x.T @ x, y.sum(0), x.T @ y, (y * y).sum(0))


def moments_by_pattern(x_ND: ArrayLike, y_NO: ArrayLike) -> dict[Pattern, Moments]:
    """Returns the sums of each pattern of `y_NO`, where NaN marks an objective that is not rated.

    Rows without any rating are left out.

    Raises:
        ValueError: the shapes disagree, or a feature or a given rating is not finite.
    """
    x, y = np.asarray(x_ND), np.asarray(y_NO, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"features {x.shape!r} and ratings {y.shape!r} must be [N, D] and [N, O]")
    masks, which = np.unique(~np.isnan(y), axis=0, return_inverse=True)
    sums: dict[Pattern, Moments] = {}
    for k, mask in enumerate(masks):
        pattern = tuple(int(i) for i in np.flatnonzero(mask))
        if pattern:
            rows = which.reshape(-1) == k
            sums[pattern] = moments(x[rows], y[rows][:, mask])
    return sums


def merge(parts: Iterable[Sums]) -> dict[Pattern, Moments]:
    """Returns the sums of all parts, added in the given order."""
    total: dict[Pattern, Moments] = {}
    for part in parts:
        for pattern, sums in part.items():
            total[pattern] = total[pattern] + sums if pattern in total else sums
    return total


def without(folds: Sequence[Sums], left_out: int) -> dict[Pattern, Moments]:
    """Returns the sums of all folds but one, by adding the others: subtracting would cancel."""
    if not 0 <= left_out < len(folds):
        raise ValueError(f"left_out is {left_out!r}; it must be a fold, 0 to {len(folds) - 1}")
    return merge(fold for i, fold in enumerate(folds) if i != left_out)


def save(file: str | os.PathLike[str] | BinaryIO, by_pattern: Sums) -> None:
    """Writes the sums of one block as .npz. A name without that ending gets it from numpy."""
    arrays: dict[str, Array] = {}
    for pattern, sums in by_pattern.items():
        key = "-".join(map(str, pattern))
        arrays |= {f"{key}/{f.name}": np.asarray(getattr(sums, f.name)) for f in fields(sums)}
    np.savez(file, allow_pickle=False, **arrays)


def load(file: str | os.PathLike[str] | BinaryIO) -> dict[Pattern, Moments]:
    """Reads what `save` wrote, with the patterns in the order in which they were saved."""
    with np.load(file, allow_pickle=False) as stored:
        keys = dict.fromkeys(name.split("/")[0] for name in stored.files)
        sums: dict[Pattern, Moments] = {}
        for key in keys:
            num_rows, *arrays = [stored[f"{key}/{f.name}"] for f in fields(Moments)]
            sums[tuple(map(int, key.split("-")))] = Moments(int(num_rows), *arrays)
    return sums


def fit_ridge(by_pattern: Sums, num_objectives: int, strengths: Sequence[float]) -> RidgePath:
    """Fits every objective on all rows that carry it, for every strength.

    With the n rows of objective i, and v = trace(A) / (n D) the mean variance of a feature,

        w_i, b_i = argmin 1/n sum (w . x + b - y_i)^2 + alpha v |w|^2
                 = (A + n alpha v I)^-1 c_i,   mean(y_i) - w_i . mean(x)

    where A is the centered Gram matrix and c_i the centered cross products. The intercept is free,
    and one alpha means the same for small and large objectives and for features in any unit.

    Args:
        by_pattern: sums of the training rows.
        num_objectives: O.
        strengths: values of alpha, ascending and positive.

    Raises:
        ValueError: strengths that are not ascending and positive, no rows at all, or a pattern
            with an objective beyond O.
    """
    alphas = np.asarray(strengths, np.float64)
    if alphas.ndim != 1 or not len(alphas) or alphas[0] <= 0 or (np.diff(alphas) <= 0).any():
        raise ValueError(f"strengths are {strengths!r}; they must be ascending and positive")
    hidden_size = _hidden_size(by_pattern)
    weights = np.full((len(alphas), num_objectives, hidden_size), np.nan)
    bias = np.full((len(alphas), num_objectives), np.nan)
    for objectives, sums in _by_objective_group(by_pattern, num_objectives):
        mean_x, mean_y = sums.sum_x / sums.num_rows, sums.sum_y / sums.num_rows
        gram, cross, _ = _centered(sums)
        # scipy's would keep other threads waiting.
        values, vectors = np.linalg.eigh(gram)
        # Directions without variance (n <= D, constant features) are zero up to rounding.
        values[values < _rounding(sums)] = 0
        penalized_SD = values + alphas[:, None] * values.mean()  # n alpha v = alpha trace(A) / D
        inverse_SD = np.zeros_like(penalized_SD)
        np.divide(1, penalized_SD, out=inverse_SD, where=penalized_SD > 0)
        solved = (inverse_SD[:, None] * (cross.T @ vectors)) @ vectors.T
        weights[:, objectives] = solved
        bias[:, objectives] = mean_y - solved @ mean_x
    return RidgePath(weights, bias)


def refit_ridge(by_pattern: Sums, chosen: Ridge, strengths: Sequence[float]) -> Ridge:
    """Fits every objective at the strength chosen for it, on other rows: those of some folds.

    The same solution as that of `fit_ridge` at this strength, by one Cholesky factor per group of
    objectives and strength: an eigendecomposition costs twenty of them.
    """
    weights = np.full((len(chosen.bias), _hidden_size(by_pattern)), np.nan)
    bias = np.full(len(chosen.bias), np.nan)
    for objectives, sums in _by_objective_group(by_pattern, len(chosen.bias)):
        mean_x, mean_y = sums.sum_x / sums.num_rows, sums.sum_y / sums.num_rows
        gram, cross, _ = _centered(sums)
        alpha_P = np.asarray(strengths)[chosen.strength[list(objectives)]]
        for alpha in np.unique(alpha_P):
            at_alpha = np.flatnonzero(alpha_P == alpha)
            rows, solved = np.array(objectives)[at_alpha], np.zeros((len(gram), len(at_alpha)))
            if np.trace(gram) > _rounding(sums):
                penalized = gram.copy()
                penalized[np.diag_indices_from(gram)] += alpha * np.trace(gram) / len(gram)
                factor = cho_factor(penalized, overwrite_a=True, check_finite=False)
                solved = cho_solve(factor, cross[:, at_alpha])
            weights[rows] = solved.T
            bias[rows] = mean_y[at_alpha] - weights[rows] @ mean_x
    return Ridge(weights, bias, np.where(np.isnan(bias), -1, chosen.strength))


def squared_error(path: RidgePath, by_pattern: Sums) -> Array:
    """Returns the mean squared error [S, O] on the rows behind `by_pattern`, from their sums alone.

    With A, c, q the centered sums of those n rows,

        n mse = w' A w - 2 w' c + q + n (w . mean(x) + b - mean(y))^2

    Objectives without rows there, or without a fit, have NaN.
    """
    num_strengths, num_objectives = path.bias.shape
    errors = np.full((num_strengths, num_objectives), np.nan)
    for objectives, sums in _by_objective_group(by_pattern, num_objectives):
        n, w_SPD = sums.num_rows, path.weights[:, objectives]
        gram, cross, square = _centered(sums)
        fit = np.einsum("spd,spd->sp", w_SPD @ gram, w_SPD)
        agree = np.einsum("spd,dp->sp", w_SPD, cross)
        shift = w_SPD @ (sums.sum_x / n) + path.bias[:, objectives] - sums.sum_y / n
        errors[:, objectives] = np.maximum(fit - 2 * agree + square, 0) / n + shift**2
    return errors


def choose(path: RidgePath, errors_SO: Array) -> Ridge:
    """Takes for each objective the strength with the least error, the stronger one of equals.

    An objective whose errors are NaN (no rows to choose on) gets the strongest penalty: without
    evidence that its features help, the prediction that varies least is the safe one.
    """
    num_strengths, num_objectives = path.bias.shape
    errors = np.where(np.isnan(errors_SO), np.inf, errors_SO)
    index = num_strengths - 1 - errors[::-1].argmin(0)
    every = np.arange(num_objectives)
    weights, bias = path.weights[index, every], path.bias[index, every]
    return Ridge(weights, bias, np.where(np.isnan(bias), -1, index))


def _hidden_size(by_pattern: Sums) -> int:
    if not any(sums.num_rows for sums in by_pattern.values()):
        raise ValueError("there are no rated rows to fit; check the ratings and the split")
    return len(next(iter(by_pattern.values())).sum_x)


def _by_objective_group(by_pattern: Sums, num_objectives: int) -> Iterable[tuple[Pattern, Moments]]:
    """Yields objectives observed on the same patterns, with their sums over those patterns.

    Patterns are added in sorted order, so that the order of the dictionary does not matter.
    """
    patterns = sorted(pattern for pattern, sums in by_pattern.items() if sums.num_rows)
    if any(max(pattern) >= num_objectives for pattern in patterns):
        raise ValueError(f"patterns {patterns!r} name an objective beyond {num_objectives - 1}")
    groups: dict[tuple[Pattern, ...], list[int]] = {}
    for i in range(num_objectives):
        if seen := tuple(pattern for pattern in patterns if i in pattern):
            groups.setdefault(seen, []).append(i)
    for seen, objectives in groups.items():
        parts = (_columns(by_pattern[pattern], pattern, objectives) for pattern in seen)
        yield tuple(objectives), reduce(add, parts)


def _columns(sums: Moments, pattern: Pattern, objectives: Sequence[int]) -> Moments:
    at = [pattern.index(i) for i in objectives]
    y = (sums.sum_y[at], sums.cross[:, at], sums.sum_yy[at])
    return Moments(sums.num_rows, sums.sum_x, sums.gram, *y)


def _rounding(sums: Moments) -> float:
    """Returns what a variance that is 0 may come out as."""
    return float(np.finfo(np.float64).eps * len(sums.sum_x) * np.trace(sums.gram))


def _centered(sums: Moments) -> tuple[Array, Array, Array]:
    """Returns the Gram matrix, cross products and squares about the means."""
    mean_x, mean_y = sums.sum_x / sums.num_rows, sums.sum_y / sums.num_rows
    gram = sums.gram - np.outer(mean_x, sums.sum_x)
    cross = sums.cross - np.outer(mean_x, sums.sum_y)
    return gram, cross, sums.sum_yy - mean_y * sums.sum_y
