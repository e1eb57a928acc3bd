"""Effect of cleaned labels: fresh heads on raw, cleaned and randomly thinned labels.

All are judged on the same trusted pairs, whose prompts are in no fit. Leaving rows out can help or
harm by itself, so that the control leaves out as many random rows as cleaning changes.

Legend: `P` audited pairs, `T` trusted pairs of the test, `D` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoply.armorm.label_heads import Labels, PairRoles, fit_labels, plain_labels
from panoply.measure.intervals import paired_interval
from panoply.measure.metrics import pair_metrics
from panoply.types import Array, Bools, Floats, Ints, Strings

DRAWS = 3
"""Draws of the rows that the control leaves out."""


@dataclass(frozen=True, slots=True)
class TrustedPairs:
    """Trusted pairs that judge the heads."""

    difference_TD: Floats
    gap_T: Ints
    """Length of the chosen minus length of the rejected response."""
    key_T: Strings
    source_T: Strings


def cleaning_effect(
    difference_PD: Floats, cleaned: Labels, roles: PairRoles, test: TrustedPairs, seed: int
) -> dict[str, Any]:
    """Returns accuracy of heads by what they were fitted on, and paired differences with intervals.

    Args:
        difference_PD: features of the chosen minus those of the rejected response.
        cleaned: labels and weights after cleaning.
        roles: pairs that may be fitted; none of a prompt of the test.
        test: the trusted pairs.
        seed: of the random rows.

    Raises:
        ValueError: too few pairs are left to fit or to choose on.
    """
    num = len(difference_PD)
    num_out = int(_changed(cleaned).sum())
    random = [_without_random(num, num_out, (seed, draw)) for draw in range(DRAWS)]
    arms: Mapping[str, Sequence[Labels]] = {
        "raw": [plain_labels(num)],
        "cleaned": [cleaned],
        "random rows left out": random,
    }
    # A head that has one draw is compared with each draw of the control on the same pairs.
    gap, source, key = [np.tile(each, DRAWS) for each in (test.gap_T, test.source_T, test.key_T)]
    margins, rows = dict[str, Array](), dict[str, Any]()
    for name, draws in arms.items():
        heads = [fit_labels(difference_PD, labels, roles) for labels in draws]
        drawn = [test.difference_TD @ head_D for head_D in heads]
        margins[name] = np.concatenate(drawn * (DRAWS // len(drawn)))
        measured = pair_metrics(margins[name], gap, key)
        used = [(labels.weight_P > 0)[roles.fitted_P].sum() for labels in draws]
        rows[name] = {
            "pairs": float(np.mean(used)),
            "changed": float(np.mean([_changed(labels).mean() for labels in draws])),
            "accuracy": measured["accuracy"],
            "accuracy_length_balanced": measured["accuracy_length_balanced"],
        }
    differences = {
        f"cleaned - {name}": paired_interval(margins["cleaned"], margins[name], gap, source, key)
        for name in arms
        if name != "cleaned"
    }
    return {
        "num_test": len(test.key_T),
        "draws": DRAWS,
        "arms": rows,
        "differences": differences,
    }


def _changed(labels: Labels) -> Bools:
    """Returns which pairs are swapped or left out."""
    return (labels.sign_P < 0) | (labels.weight_P == 0)


def _without_random(num: int, num_out: int, seed: tuple[int, int]) -> Labels:
    """Returns labels as they are, of which some at random are left out."""
    labels = plain_labels(num)
    labels.weight_P[np.random.default_rng(seed).permutation(num)[:num_out]] = 0
    return labels
