"""Pairs whose right labels are known, with scorers that are right by and large."""

from dataclasses import dataclass

import numpy as np

from panoply.armorm.label_heads import PairRoles, held_out_margins, plain_labels
from panoply.measure.audit_report import Electorate

NUM_AUDITED, NUM_TRUSTED, NUM_FEATURES, NUM_FOLDS = 900, 400, 120, 5


@dataclass
class PlantedLabels:
    """Audited pairs, of whose labels a share is swapped, and trusted pairs behind them."""

    difference_ND: np.ndarray
    flipped_P: np.ndarray
    roles: PairRoles
    gap_N: np.ndarray
    margins: dict

    @property
    def trusted(self):
        """Rows of the trusted pairs."""
        return np.arange(NUM_AUDITED, NUM_AUDITED + NUM_TRUSTED)

    def electorate(self, **changes):
        """All voters: the scorers, and a head that is fitted here."""
        rules = {"max_false": 0.1, "flip_below": 1.0, "trusted": self.trusted}
        return Electorate(
            margins=self.margins,
            num_audited=NUM_AUDITED,
            fold_N=self.roles.fold_P,
            **{**rules, **changes},
        )


def planted_labels(share, seed=0):
    """A world in which the better response has the higher w . x, and `share` of labels is wrong.

    Three scorers see the true margin with noise of their own, in units of their own; a head is
    fitted out of fold to the labels as they stand.
    """
    rng = np.random.default_rng(seed)
    num = NUM_AUDITED + NUM_TRUSTED
    weights = rng.normal(size=NUM_FEATURES) / np.sqrt(NUM_FEATURES)
    difference = rng.normal(size=(num, NUM_FEATURES))
    true = difference @ weights
    difference, true = difference * np.sign(true)[:, None], np.abs(true)
    flipped = np.zeros(num, bool)
    flipped[:NUM_AUDITED] = rng.random(NUM_AUDITED) < share
    label = np.where(flipped, -1.0, 1.0)
    margins = {}
    for name, noise, unit in (("a", 0.5, 1.0), ("b", 0.5, 30.0), ("c", 0.5, 0.01)):
        margins[name] = unit * label * (true + noise * rng.normal(size=num))
    roles = PairRoles(
        fold_P=rng.integers(NUM_FOLDS, size=num),
        fitted_P=np.ones(num, bool),
        select_P=rng.random(num) < 0.15,
        trusted_P=np.arange(num) >= NUM_AUDITED,
    )
    signed = (difference * label[:, None]).astype(np.float32)
    margins["head"] = held_out_margins(signed, plain_labels(num), roles)
    # The better response is longer by and large, as raters like it.
    gap = np.round(label * (0.3 * true + rng.normal(size=num)) * 100).astype(np.int64)
    return PlantedLabels(signed, flipped[:NUM_AUDITED], roles, gap, margins)
