"""Objective values of training rows from ridges that have not seen them.

The gate is trained on objective values of training pairs. Pairs and ratings share prompts, and a
ridge predicts the rows that it was fitted on too well, so *train* is divided into folds by prompt
and the values of a training row come from the ridge that was fitted without its fold.

Shapes: N rows, F features, O objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoply.armorm.ridge import (
    Ridge,
    Sums,
    choose,
    fit_ridge,
    merge,
    moments_by_pattern,
    refit_ridge,
    squared_error,
    without,
)
from panoply.config.armorm import ObjectivesConfig
from panoply.data.features import FeatureRows
from panoply.data.tables import Split
from panoply.types import Array, Floats, Ints

SELECT, UNUSED = -1, -2
"""Folds of the rows of *select*, and of those that stage 1 may not see."""


@dataclass(frozen=True, slots=True)
class FoldedRidge:
    """Every objective's ridge: one on all of *train*, and one without each fold."""

    full: Ridge
    folds: tuple[Ridge, ...]

    def predict(self, features: FeatureRows, fold_N: Ints) -> Array:
        """Returns r `[N, O]`: out of fold where `fold_N` is 0 or more, else by the full ridge."""
        values = np.empty((len(fold_N), len(self.full.bias)))
        for rows, x in features.parts():
            for fold in np.unique(fold_N[rows]):
                in_fold = fold_N[rows] == fold
                ridge = self.full if fold < 0 else self.folds[fold]
                values[rows[in_fold]] = x[in_fold] @ ridge.weights.T + ridge.bias
        return values

    def only(self, objective: int) -> FoldedRidge:
        """Returns one objective alone."""
        rows = slice(objective, objective + 1)
        fits = [
            Ridge(fit.weights[rows], fit.bias[rows], fit.strength[rows])
            for fit in (self.full, *self.folds)
        ]
        return FoldedRidge(fits[0], tuple(fits[1:]))


@dataclass(frozen=True, slots=True)
class Objectives:
    """Stage 1 of ArmoRM: the rated objectives r, the length r_v, and the unit u of each r_i."""

    names: tuple[str, ...]
    rated: FoldedRidge
    length: FoldedRidge
    """r_v alone: predicted log length, or the rated verbosity."""
    unit_O: Array
    """u, see `rating_units`."""


def check_learnable(names: tuple[str, ...], verbosity: str) -> None:
    """Checks that objectives can be learned, and that the one named as r_v is among them.

    Raises:
        ValueError: there is none, or it is not.
    """
    if not names:
        raise ValueError("no objective can be learned: add ratings of other prompts")
    if verbosity and verbosity not in names:
        raise ValueError(
            f"`objectives.verbosity` is {verbosity!r}, which is not among the objectives that can "
            f"be learned: {', '.join(names)}. Empty takes predicted log length"
        )


def rating_units(labels_NO: Array) -> Array:
    """Returns u `[O]`, the deviation of the ratings of each objective; 1 for one without any."""
    unit_O = np.nanstd(labels_NO, axis=0)
    return np.where(unit_O > 0, unit_O, 1.0)


def training_folds(split: Split) -> Ints:
    """Returns the fold of training rows, SELECT for *select* and UNUSED for the rest."""
    rest_N = np.where(split.part_N == "select", SELECT, UNUSED)
    return np.where(split.part_N == "train", split.fold_N, rest_N)


def fit_folds(
    folds: Sequence[Sums], select: Sums, num_objectives: int, strengths: Sequence[float]
) -> FoldedRidge:
    """Fits every objective from sums: on all folds, then without each of them.

    The strength of an objective is the one with the least error on *select*; the ridges without a
    fold take it over.

    Args:
        folds: sums of the training rows of each fold.
        select: sums of the rows of *select*.
        num_objectives: O.
        strengths: see `fit_ridge`.
    """
    path = fit_ridge(merge(folds), num_objectives, strengths)
    full = choose(path, squared_error(path, select))
    left_out = [refit_ridge(without(folds, k), full, strengths) for k in range(len(folds))]
    return FoldedRidge(full, tuple(left_out))


def fit_rows(
    features_NF: Floats, labels_NO: Array, fold_N: Ints, config: ObjectivesConfig
) -> FoldedRidge:
    """Fits every objective on rows in memory; see `panoply.armorm.blocks` for rows that are not.

    Args:
        features_NF: `[N, F]`.
        labels_NO: `[N, O]` ratings, NaN where an objective is not rated.
        fold_N: `[N]` fold of a training row, SELECT or UNUSED; see `training_folds`.
        config: folds and strengths.
    """

    def sums(fold: int) -> Sums:
        return moments_by_pattern(features_NF[fold_N == fold], labels_NO[fold_N == fold])

    folds = [sums(fold) for fold in range(config.num_folds)]
    return fit_folds(folds, sums(SELECT), labels_NO.shape[1], config.strengths)
