"""Bradley-Terry heads on frozen features, fitted to judge labels or to be judged by them.

    v = argmin mean_i w_i log(1 + exp(-y_i d_i . v)) + alpha / 2 |v rms(d)|^2

with d the features of the chosen minus those of the rejected response, y = -1 where a label is
swapped, and w a pair's weight. A head without its penalty learns wrong labels by heart, so the
strength alpha is chosen on *select*. Where some labels are trusted, they alone choose, and they
also choose how many times the weight of another label a trusted one has: the more of the others are
wrong, in whatever way, the less these count. The problem is convex: equal data, equal head.

Legend: `P` pairs, `D` features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from panoply.armorm.mixtures import STRENGTHS, fit_linear
from panoply.measure.calibration import log_loss
from panoply.types import Array, Bools, Floats, Ints

TRUST = (1.0, 4.0, 16.0)
"""Weights of a trusted label, in units of that of another, among which *select* chooses."""
FEWEST_PAIRS = 50
"""Pairs to fit on below which a head says nothing of a label."""


@dataclass(frozen=True, slots=True)
class PairRoles:
    """Assigns each pair its use; folds and parts are of prompts, and no prompt is on two sides."""

    fold_P: Ints
    """Fold of the pair's prompt."""
    fitted_P: Bools
    """Pairs whose labels heads may learn."""
    select_P: Bools
    """Of the fitted pairs those that choose the strength."""
    trusted_P: Bools
    """Of the fitted pairs those whose labels are known to be right."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of pairs as a head learns them."""

    sign_P: Array
    """1 where the label stands, -1 where it is swapped."""
    weight_P: Array
    """Weight of the pair; 0 leaves it out."""


def plain_labels(num_pairs: int) -> Labels:
    """Returns the labels as they are, all of weight 1."""
    return Labels(np.ones(num_pairs), np.ones(num_pairs))


def fit_labels(difference_PD: Floats, labels: Labels, roles: PairRoles) -> Array:
    """Returns a head `[D]` fitted to labels outside *select*, with strength and trust chosen there.

    Raises:
        ValueError: too few pairs are left to fit or to choose on.
    """
    used_P = roles.fitted_P & (labels.weight_P > 0)
    train, select = np.flatnonzero(used_P & ~roles.select_P), used_P & roles.select_P
    trusted_select = select & roles.trusted_P
    select = np.flatnonzero(trusted_select if trusted_select.any() else select)
    if len(train) < FEWEST_PAIRS or not len(select):
        raise ValueError(
            f"{len(train)} pairs are left to fit a head on and {len(select)} to choose its "
            f"strength, fewer than {FEWEST_PAIRS} and 1: add pairs of other prompts, or leave the "
            "head out (`--head none`)"
        )
    signed_PD = difference_PD * labels.sign_P[:, None].astype(np.float32)
    is_trusted = roles.trusted_P[train]
    heads: list[Array] = []
    for trust in TRUST if is_trusted.any() else TRUST[:1]:
        weights = labels.weight_P[train] * np.where(is_trusted, trust, 1.0)
        head = fit_linear(signed_PD[train], STRENGTHS, signed_PD[select], weights_P=weights)
        heads.append(head.coefficients)
    return min(heads, key=lambda head_D: log_loss(signed_PD[select] @ head_D))


def held_out_margins(difference_PD: Floats, labels: Labels, roles: PairRoles) -> Array:
    """Returns margins `[P]` of heads that have seen no pair of the same fold.

    Each pair is judged by the head that was fitted, and whose strength was chosen, without its
    fold, whether or not its own label may be learned.

    Raises:
        ValueError: see `fit_labels`.
    """
    margin_P = np.empty(len(difference_PD))
    for fold in np.unique(roles.fold_P):
        inside_P = roles.fold_P == fold
        others = replace(roles, fitted_P=roles.fitted_P & ~inside_P)
        head_D = fit_labels(difference_PD, labels, others)
        margin_P[inside_P] = difference_PD[inside_P] @ head_D
    return margin_P


def fitted_margins(difference_PD: Floats, labels: Labels, roles: PairRoles) -> Array:
    """Returns margins `[P]` of one head fitted to all labels: of those it learned, far too sure."""
    head_D = fit_labels(difference_PD, labels, roles)
    return difference_PD @ head_D
