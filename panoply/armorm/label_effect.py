"""Effect of cleaned labels: fresh heads on raw, cleaned and randomly thinned labels.

All are judged on the same trusted pairs, whose prompts are in no fit. Leaving rows out can help or
harm by itself, so that the control leaves out as many random rows as cleaning changes. What found
the wrong labels learned trusted ones, which may as well be added to the raw labels: that is the
other control.

Legend: `N` audited pairs and behind them trusted ones, `P` audited pairs, `T` trusted pairs of the
test, `D` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoply.armorm.label_heads import Labels, PairRoles, fit_labels, plain_labels
from panoply.measure.intervals import paired_interval
from panoply.measure.metrics import pair_metrics
from panoply.types import Array, Bools, Floats, Ints, Strings

DRAWS = 3
"""Draws of the rows that the control leaves out."""
RANDOM = "random rows left out"
RAW_TRUSTED, CLEANED_TRUSTED = "raw and trusted pairs", "cleaned and trusted pairs"


@dataclass(frozen=True, slots=True)
class TrustedPairs:
    """Trusted pairs that judge the heads."""

    difference_TD: Floats
    gap_T: Ints
    """Length of the chosen minus length of the rejected response."""
    key_T: Strings
    source_T: Strings


def cleaning_effect(
    difference_ND: Floats, cleaned: Labels, roles: PairRoles, test: TrustedPairs, seed: int
) -> dict[str, Any]:
    """Returns accuracy of heads by what they were fitted on, and paired differences with intervals.

    Args:
        difference_ND: features of the chosen minus those of the rejected response.
        cleaned: labels and weights `[P]` after cleaning.
        roles: audited and trusted pairs `[N]` that may be fitted; none of a prompt of the test.
        test: the trusted pairs.
        seed: of the random rows.

    Raises:
        ValueError: too few pairs are left to fit or to choose on.
    """
    num = len(cleaned.sign_P)
    raw, num_out = plain_labels(num), int(_changed(cleaned).sum())
    random = [_without_random(num, num_out, (seed, draw)) for draw in range(DRAWS)]
    arms: dict[str, Sequence[Labels]] = {"raw": [raw], "cleaned": [cleaned], RANDOM: random}
    num_trusted = len(difference_ND) - num
    weights = dict.fromkeys(arms, 0.0)
    pairs_of_arms = [("cleaned", "raw"), ("cleaned", RANDOM)]
    if (roles.fitted_P & roles.trusted_P).any():
        arms |= {RAW_TRUSTED: [raw], CLEANED_TRUSTED: [cleaned]}
        weights |= {RAW_TRUSTED: 1.0, CLEANED_TRUSTED: 1.0}
        pairs_of_arms += [("cleaned", RAW_TRUSTED), (CLEANED_TRUSTED, RAW_TRUSTED)]
    # A head that has one draw is compared with each draw of the control on the same pairs.
    gap, source, key = [np.tile(each, DRAWS) for each in (test.gap_T, test.source_T, test.key_T)]
    margins, rows = dict[str, Array](), dict[str, Any]()
    for name, draws in arms.items():
        both = [_with_trusted(labels, num_trusted, weights[name]) for labels in draws]
        heads = [fit_labels(difference_ND, labels, roles) for labels in both]
        drawn = [test.difference_TD @ head_D for head_D in heads]
        margins[name] = np.concatenate(drawn * (DRAWS // len(drawn)))
        measured = pair_metrics(margins[name], gap, key)
        used = [(labels.weight_P > 0)[roles.fitted_P].sum() for labels in both]
        rows[name] = {
            "pairs": float(np.mean(used)),
            "changed": float(np.mean([_changed(labels).mean() for labels in draws])),
            "accuracy": measured["accuracy"],
            "accuracy_length_balanced": measured["accuracy_length_balanced"],
        }
    differences = {
        f"{name} - {other}": paired_interval(margins[name], margins[other], gap, source, key)
        for name, other in pairs_of_arms
    }
    return {
        "num_test": len(test.key_T),
        "draws": DRAWS,
        "arms": rows,
        "differences": differences,
    }


def _with_trusted(labels: Labels, num_trusted: int, weight: float) -> Labels:
    """Returns the labels with those of trusted pairs behind them, as they are."""
    trusted = np.ones(num_trusted)
    return Labels(
        np.concatenate([labels.sign_P, trusted]),
        np.concatenate([labels.weight_P, weight * trusted]),
    )


def _changed(labels: Labels) -> Bools:
    """Returns which pairs are swapped or left out."""
    return (labels.sign_P < 0) | (labels.weight_P == 0)


def _without_random(num: int, num_out: int, seed: tuple[int, int]) -> Labels:
    """Returns labels as they are, of which some at random are left out."""
    labels = plain_labels(num)
    labels.weight_P[np.random.default_rng(seed).permutation(num)[:num_out]] = 0
    return labels
