"""Choosing where features are read: depth and pooling, on *select*, from a small sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from panoply.armorm.ridge import choose, fit_ridge, moments_by_pattern, squared_error
from panoply.config import Pooling
from panoply.data.features import FeatureStore
from panoply.data.schema import uniform
from panoply.data.tables import RatingTable
from panoply.measure.metrics import spearman
from panoply.types import Ints

MIN_LABELS = 8
"""An objective with fewer ratings in the sample's *select* rows does not count."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A place where features are read, and how well objectives are predicted from there."""

    depth: int
    pooling: Pooling
    spearman: float = float("nan")
    """Mean over objectives on the *select* rows of the sample; NaN where nothing was compared."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the feature store."""
        last, mean = (f"last_{self.depth}",), (f"mean_{self.depth}",)
        return {"last": last, "mean_response": mean, "both": last + mean}[self.pooling]

    @property
    def gate_column(self) -> str:
        """Column of the prompts' features in the feature store."""
        return f"gate_{self.depth}"


def sample_rows(ratings: RatingTable, num_prompts: int, seed: int) -> tuple[Ints, Ints]:
    """Returns the rows of sampled *train* prompts and of half as many *select* prompts."""
    rows: list[Ints] = []
    for part, share in (("train", 2 / 3), ("select", 1 / 3)):
        in_part = np.flatnonzero(ratings.split.part_N == part)
        prompts = ratings.prompt_N[in_part]
        names = sorted(set(prompts), key=lambda name: uniform(seed, "layers", name))
        sampled = names[: max(1, round(share * num_prompts))]
        rows.append(in_part[np.isin(prompts, sampled)])
    return rows[0], rows[1]


def rate_spec(
    spec: FeatureSpec,
    ratings: RatingTable,
    train: Ints,
    select: Ints,
    store: FeatureStore,
    strengths: Sequence[float],
) -> FeatureSpec:
    """Fits the objectives on the sample's training rows and rates them on its *select* rows.

    Returns:
        The place with its mean rank correlation; -1 where no objective has MIN_LABELS ratings.
    """
    rows = np.concatenate([train, select])
    x = store.features("texts", ratings.text_N[rows], spec.columns).read()
    labels, cut = ratings.labels_NO[rows], len(train)
    path = fit_ridge(moments_by_pattern(x[:cut], labels[:cut]), labels.shape[1], strengths)
    ridge = choose(path, squared_error(path, moments_by_pattern(x[cut:], labels[cut:])))
    predicted = x[cut:] @ ridge.weights.T + ridge.bias
    correlations: list[float] = []
    for predicted_N, label_N in zip(predicted.T, labels[cut:].T, strict=True):
        rated = ~np.isnan(label_N) & ~np.isnan(predicted_N)
        if rated.sum() >= MIN_LABELS:
            rho = spearman(predicted_N[rated], label_N[rated])
            correlations.append(0.0 if np.isnan(rho) else rho)
    return replace(spec, spearman=float(np.mean(correlations)) if correlations else -1.0)
