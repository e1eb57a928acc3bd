"""Choosing where features are read: depth and pooling, on *select*, from a small sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from panoply.armorm.ridge import choose, fit_ridge, moments_by_pattern, squared_error
from panoply.config import Pooling
from panoply.config.armorm import ObjectivesConfig
from panoply.data.features import FeatureStore
from panoply.data.schema import uniform
from panoply.data.tables import RatingTable
from panoply.measure.metrics import spearman
from panoply.report.progress import RunLogger
from panoply.types import Ints
from workflows.cluster.embed import EmbeddingJob, TextFiles, embed

MIN_LABELS = 8


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Where features are read, and how well objectives are predicted from there."""

    depth: int
    pooling: Pooling
    spearman: float
    """Mean over objectives on the *select* rows of the sample; NaN where nothing was compared."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the feature store."""
        last, mean = (f"last_{self.depth}",), (f"mean_{self.depth}",)
        return {"last": last, "mean_response": mean, "both": last + mean}[self.pooling]


def choose_place(
    ratings: RatingTable,
    texts: TextFiles,
    source: EmbeddingJob,
    objectives: ObjectivesConfig,
    seed: int,
    logger: RunLogger,
) -> tuple[FeatureSpec, list[FeatureSpec]]:
    """Returns the best of the candidate places, and all of them with what they reached.

    A third of the sampled prompts is from *select*, the others from *train*.
    """
    config, depths = source.probed.config, source.probed.depths
    if len(depths) == 1 and len(config.poolings) == 1:
        only = FeatureSpec(depths[0], config.poolings[0], float("nan"))
        return only, [only]
    train, select = sample_rows(ratings, config.sample_prompts, seed)
    prompts = frozenset(ratings.prompt_N[np.concatenate([train, select])])
    store, _ = embed(texts, source, depths, logger, prompts=prompts)
    tried = [
        rate_place(
            FeatureSpec(depth, pooling, 0.0), ratings, train, select, store, objectives.strengths
        )
        for depth, pooling in product(depths, config.poolings)
    ]
    return max(tried, key=lambda place: place.spearman), tried


def sample_rows(ratings: RatingTable, num_prompts: int, seed: int) -> tuple[Ints, Ints]:
    """Returns the rows of sampled *train* prompts and of half as many *select* prompts."""
    rows: list[Ints] = []
    for part, share in (("train", 2 / 3), ("select", 1 / 3)):
        own = np.flatnonzero(ratings.split.part_N == part)
        names = sorted(set(ratings.prompt_N[own]), key=lambda n: uniform(seed, "layers", n))
        kept = set(names[: max(1, round(share * num_prompts))])
        rows.append(own[[name in kept for name in ratings.prompt_N[own]]])
    return rows[0], rows[1]


def rate_place(
    place: FeatureSpec,
    ratings: RatingTable,
    train: Ints,
    select: Ints,
    store: FeatureStore,
    strengths: Sequence[float],
) -> FeatureSpec:
    """Fits the objectives on the sample's training rows and rates them on its *select* rows."""
    rows = np.concatenate([train, select])
    found = store.find("texts", list(ratings.text_N[rows]))
    features = np.empty(0)
    for at, x in store.gather(found, place.columns):
        features = features if features.size else np.empty((len(rows), x.shape[1]))
        features[at] = x
    labels = ratings.labels_NO[rows]
    cut, num_objectives = len(train), labels.shape[1]
    path = fit_ridge(moments_by_pattern(features[:cut], labels[:cut]), num_objectives, strengths)
    held_out = moments_by_pattern(features[cut:], labels[cut:])
    ridge = choose(path, squared_error(path, held_out))
    predicted = features[cut:] @ ridge.weights.T + ridge.bias
    reached: list[float] = []
    for i in range(num_objectives):
        rated = ~np.isnan(labels[cut:, i]) & ~np.isnan(predicted[:, i])
        if rated.sum() >= MIN_LABELS:
            rho = spearman(predicted[rated, i], labels[cut:][rated, i])
            reached.append(0.0 if np.isnan(rho) else rho)
    return FeatureSpec(place.depth, place.pooling, float(np.mean(reached)) if reached else -1.0)
