"""Votes of scorers on the labels of pairs: which labels are likely to be the wrong way round.

A voter's margin is s(chosen) - s(rejected), divided by a scale that no label enters; NaN is no
vote. A pair is suspect where all voters that have one, or of three and more all but one, prefer the
rejected response; its statistic is the mean margin, and infinite elsewhere. Trusted pairs say how
often a right label looks as bad:

    p_i = (1 + #{trusted j: t_j <= t_i}) / (1 + number of trusted pairs)

These are conformal p-values (Bates et al., arXiv 2104.08279): of right labels, if they are like
the trusted ones, a share of at most p has a p-value of p or less. Benjamini and Hochberg's step-up
keeps the expected share of right labels among those that are found below a bound.

Legend: `K` voters, `P` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import false_discovery_control, rankdata

from panoply.types import Array, Bools, Ints

FEWEST_FOR_DISSENT = 3
"""Voters from which on one of them may disagree with a suspicion."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Sums up the margins of all voters for each pair."""

    mean_P: Array
    """Mean margin; NaN where nobody votes."""
    std_P: Array
    """Deviation of the margins between voters; NaN where nobody votes."""
    num_P: Ints
    """Voters that have a margin."""
    against_P: Ints
    """Voters that prefer the rejected response; a margin of 0 is against nothing."""

    @property
    def is_outvoted_P(self) -> Bools:
        """True where all voters, or of FEWEST_FOR_DISSENT and more all but one, are against."""
        allowed = self.num_P >= FEWEST_FOR_DISSENT
        return (self.num_P > 0) & (self.against_P >= self.num_P - allowed)

    @property
    def statistic_P(self) -> Array:
        """The mean margin of suspect pairs, infinite of the others."""
        return np.where(self.is_outvoted_P & (self.mean_P < 0), self.mean_P, np.inf)


def label_free_scale(margin_P: ArrayLike) -> float:
    """Returns the median of |margin| over the pairs that have one; NaN where it is 0 or undefined.

    Swapping labels changes no absolute value, so that no label enters it.
    """
    margins = np.abs(np.asarray(margin_P, np.float64))
    present = margins[~np.isnan(margins)]
    scale = float(np.median(present)) if len(present) else 0.0
    return scale or float("nan")


def held_out_scaled(margin_P: Array, fold_P: Ints) -> Array:
    """Returns margins `[P]`, each divided by the scale of the pairs outside its fold."""
    scaled_P = np.full(len(margin_P), np.nan)
    for fold in np.unique(fold_P):
        inside = fold_P == fold
        scaled_P[inside] = margin_P[inside] / label_free_scale(margin_P[~inside])
    return scaled_P


def count_votes(margin_KP: Array) -> Votes:
    """Returns the votes on each pair from scaled margins `[K, P]`, NaN where a voter has none."""
    present_KP = ~np.isnan(margin_KP)
    num_P = present_KP.sum(0)
    divisor_P = np.where(num_P > 0, num_P, np.nan)
    mean_P = np.where(present_KP, margin_KP, 0.0).sum(0) / divisor_P
    centered_KP = np.where(present_KP, margin_KP - mean_P, 0.0)
    return Votes(
        mean_P=mean_P,
        std_P=np.sqrt((centered_KP**2).sum(0) / divisor_P),
        num_P=num_P.astype(np.int64),
        against_P=(present_KP & (margin_KP < 0)).sum(0).astype(np.int64),
    )


def false_shares(statistic_P: ArrayLike, trusted_G: ArrayLike) -> Array:
    """Returns for each pair the expected share of right labels among all pairs as suspect or more.

    Args:
        statistic_P: of the pairs that are audited, see `Votes.statistic_P`.
        trusted_G: of trusted pairs, by the same voters, none of which was fitted on them.

    Raises:
        ValueError: there is no trusted pair.
    """
    trusted = np.sort(np.asarray(trusted_G, np.float64))
    if not len(trusted):
        raise ValueError("there is no trusted pair that says how often a right label looks wrong")
    statistic = np.asarray(statistic_P, np.float64)
    at_most = np.searchsorted(trusted, statistic, side="right")
    p_P = np.where(np.isinf(statistic), 1.0, (1 + at_most) / (1 + len(trusted)))
    return np.asarray(false_discovery_control(p_P, method="bh"), np.float64)


def cleaned_signs(votes: Votes, found_P: Bools) -> Array:
    """Returns 1 where a label stays, -1 where it is swapped, 0 where the pair is left out.

    A pair that is found is swapped where all voters are against, and left out where one is not.
    """
    return np.where(found_P, np.where(votes.against_P == votes.num_P, -1.0, 0.0), 1.0)


def detection(found_P: Bools, flipped_P: Bools) -> dict[str, float]:
    """Returns how well flipped labels are found: `found`, `precision` and `recall`.

    Precision is NaN where nothing is found, and recall where nothing is flipped.
    """
    num_hits, num_found = int((found_P & flipped_P).sum()), int(found_P.sum())
    num_flipped = int(flipped_P.sum())
    return {
        "found": float(num_found),
        "precision": num_hits / num_found if num_found else float("nan"),
        "recall": num_hits / num_flipped if num_flipped else float("nan"),
    }


def lowest(statistic_P: ArrayLike, num: int) -> Bools:
    """Returns which `num` pairs have the lowest statistic; missing ones come last, ties by row."""
    statistic = np.asarray(statistic_P, np.float64)
    chosen_P = np.zeros(len(statistic), np.bool_)
    chosen_P[np.argsort(statistic, kind="stable")[:num]] = True
    return chosen_P


def separation(statistic_P: ArrayLike, flipped_P: Bools) -> float:
    """Returns the share of (flipped, other) label pairs in which the flipped one is lower (AUC).

    Ties count half; labels without a statistic count nowhere. NaN where a side is empty.
    """
    statistic = np.asarray(statistic_P, np.float64)
    present_P = ~np.isnan(statistic)
    low, high = statistic[present_P & flipped_P], statistic[present_P & ~flipped_P]
    if not len(low) or not len(high):
        return float("nan")
    ranks = rankdata(np.concatenate([low, high]))
    lost = ranks[: len(low)].sum() - len(low) * (len(low) + 1) / 2
    return float(1 - lost / (len(low) * len(high)))
