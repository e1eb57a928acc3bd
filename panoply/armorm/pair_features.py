"""Features, objective values and preference objectives of both responses of every pair.

Legend: `P` pairs, `O` objectives, `K` preference objectives, `F` response features, `D` gate
features. Arrays of chosen and rejected responses come stacked `[2, P]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoply.armorm.debias import Penalties, remove_length
from panoply.armorm.mixtures import STRENGTHS, fit_linear
from panoply.armorm.out_of_fold import Objectives
from panoply.data.features import ArrayFeatures, FeatureStore
from panoply.data.tables import PairTable
from panoply.types import Array, Floats, Ints


@dataclass(frozen=True, slots=True)
class FeatureDifference:
    """Features of chosen minus rejected responses of some pairs, computed by slice."""

    chosen_PF: Floats
    rejected_PF: Floats
    rows: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """(pairs, features)."""
        return len(self.rows), self.chosen_PF.shape[1]

    def __getitem__(self, at: slice, /) -> Array:
        """Returns the difference of some of the rows."""
        rows = self.rows[at]
        return self.chosen_PF[rows].astype(np.float64) - self.rejected_PF[rows]


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Features of both responses and of the prompt of every pair, in memory or memory-mapped."""

    chosen_PF: Floats
    rejected_PF: Floats
    gate_PD: Floats

    @classmethod
    def read(
        cls,
        store: FeatureStore,
        pairs: PairTable,
        columns: tuple[str, ...],
        gate_column: str,
        folder: Path,
    ) -> PairFeatures:
        """Copies the pairs' features from a store to `chosen`, `rejected` and `gate.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        chosen = store.features("texts", pairs.chosen_P, columns)
        rejected = store.features("texts", pairs.rejected_P, columns)
        prompts = store.features("prompts", pairs.prompt_P, (gate_column,))
        return cls(
            chosen.read(folder / "chosen.npy"),
            rejected.read(folder / "rejected.npy"),
            prompts.read(folder / "gate.npy"),
        )

    def difference(self, rows: Ints) -> FeatureDifference:
        """Returns the features of the chosen minus those of the rejected response."""
        return FeatureDifference(self.chosen_PF, self.rejected_PF, rows)


@dataclass(frozen=True, slots=True)
class PairValues:
    """Objective values and predicted log length of both responses of each pair."""

    names: tuple[str, ...]
    values_2PO: Array
    """r_i / u_i."""
    length_2P: Array
    """r_v."""

    def stacked(self, rows: Ints) -> tuple[Array, Array]:
        """Returns r `[2n, O]` and r_v `[2n]` of some pairs."""
        values = self.values_2PO[:, rows].reshape(-1, len(self.names))
        return values, self.length_2P[:, rows].reshape(-1)

    def debiased(self, penalties: Penalties) -> PairValues:
        """Returns the same with r'_i = r_i / u_i - lambda_i r_v for values."""
        values, length = self.stacked(np.arange(self.length_2P.shape[1]))
        without_length = remove_length(values, length, penalties.penalty)
        return PairValues(self.names, without_length.reshape(self.values_2PO.shape), self.length_2P)

    def difference(self) -> Array:
        """Returns the values of the chosen minus those of the rejected response, `[P, O]`."""
        return self.values_2PO[0] - self.values_2PO[1]


def predict_pairs(objectives: Objectives, features: PairFeatures, fold_P: Ints) -> PairValues:
    """Predicts r_i / u_i and r_v for both responses of every pair.

    Args:
        objectives: the ridges.
        features: of the pairs.
        fold_P: fold of a training pair, whose values come out of fold; below 0 elsewhere.
    """
    sides = [ArrayFeatures(features.chosen_PF), ArrayFeatures(features.rejected_PF)]
    values = np.stack([objectives.rated.predict(side, fold_P) for side in sides])
    length = np.stack([objectives.length.predict(side, fold_P)[:, 0] for side in sides])
    return PairValues(objectives.names, values / objectives.unit_O, length)


@dataclass(frozen=True, slots=True)
class PreferenceObjectives:
    """One Bradley-Terry head per pair source, to be gated beside the rated objectives."""

    names: tuple[str, ...]
    weights_KF: Array
    """Fitted on all training pairs of the source."""
    values_2PK: Array
    """Out of fold in *train*."""

    def beside(self, values: PairValues) -> PairValues:
        """Returns the rated objectives with these behind them."""
        joined = np.concatenate([values.values_2PO, self.values_2PK], axis=2)
        return PairValues(values.names + self.names, joined, values.length_2P)


def fit_preferences(
    pairs: PairTable, features: PairFeatures, num_folds: int
) -> PreferenceObjectives:
    """Fits the Bradley-Terry head of each source that has pairs in *train* and in *select*.

    A head is divided by the deviation of its values on *train*, as rated objectives are by u.
    """
    train, select = pairs.split.of("train"), pairs.split.of("select")
    sources = sorted(set(pairs.source_P[train]) & set(pairs.source_P[select]))
    weights: list[Array] = []
    values = np.empty((2, len(pairs.source_P), len(sources)))
    for k, source in enumerate(sources):
        own_train = train[pairs.source_P[train] == source]
        own_select = features.difference(select[pairs.source_P[select] == source])
        full = fit_linear(features.difference(own_train), STRENGTHS, own_select)
        weights.append(full.coefficients)
        for fold in range(-1, num_folds):
            rest = own_train[pairs.split.fold_N[own_train] != fold]
            head = full.coefficients
            if fold >= 0 and len(rest) < len(own_train):
                strength = [STRENGTHS[full.strength]]
                head = fit_linear(features.difference(rest), strength, own_select).coefficients
            rows = np.flatnonzero(pairs.split.fold_N == fold)
            values[0, rows, k] = features.chosen_PF[rows] @ head
            values[1, rows, k] = features.rejected_PF[rows] @ head
    deviation_K = values[:, train].reshape(-1, len(sources)).std(0)
    unit_K = np.where(deviation_K > 0, deviation_K, 1.0)
    names = tuple(f"prefers-{source}" for source in sources)
    weights_KF = np.reshape(weights, (len(sources), features.chosen_PF.shape[1]))
    return PreferenceObjectives(names, weights_KF / unit_K[:, None], values / unit_K)
