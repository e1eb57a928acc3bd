"""From objectives to pair arrays: values out of fold, length taken out, files for the heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoply.armorm.debias import Penalties
from panoply.armorm.mixtures import fit_linear
from panoply.data.features import FeatureStore
from panoply.data.tables import PairTable
from panoply.types import Array, Ints
from workflows.cluster.debias import PairValues
from workflows.cluster.objectives import FittedObjectives, as_matrix
from workflows.cluster.scorers import STRENGTHS, FeatureDifference, PairArrays


def pair_features(
    store: FeatureStore, pairs: PairTable, columns: tuple[str, ...], gate_column: str, folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Memory-maps the features of chosen and rejected responses and of the prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, rejected = (
        as_matrix(store, store.find("texts", list(ids)), columns, folder / f"{name}.npy")
        for name, ids in (("chosen", pairs.chosen_P), ("rejected", pairs.rejected_P))
    )
    prompts = store.find("prompts", list(pairs.prompt_P))
    return chosen, rejected, as_matrix(store, prompts, (gate_column,), folder / "gate.npy")


def pair_values(
    rated: FittedObjectives,
    length: FittedObjectives,
    store: FeatureStore,
    pairs: PairTable,
    names: tuple[str, ...],
    unit_O: Array,
) -> PairValues:
    """Predicts all objectives for both responses; training pairs get out-of-fold values."""
    fold_P = pairs.split.fold_N
    both = [store.find("texts", list(ids)) for ids in (pairs.chosen_P, pairs.rejected_P)]
    values = np.stack([rated.values(store, found, fold_P) for found in both]) / unit_O
    lengths = np.stack([length.values(store, found, fold_P)[:, 0] for found in both])
    return PairValues(names, values, lengths)


def preference_heads(
    pairs: PairTable, chosen_PF: NDArray[np.float32], rejected_PF: NDArray[np.float32], folds: int
) -> tuple[tuple[str, ...], Array, Array]:
    """Fits one Bradley-Terry head per pair source; beyond the paper.

    Returns:
        Names, weights `[K, F]` fitted on all training pairs of each source, and values
        `[2, P, K]`: those of training pairs from heads fitted without their fold.
    """
    train, select = pairs.split.of("train"), pairs.split.of("select")
    sources = [
        s
        for s in sorted(set(pairs.source_P))
        if all((pairs.source_P[p] == s).any() for p in (train, select))
    ]
    weights: list[Array] = []
    values = np.empty((2, len(chosen_PF), len(sources)))

    def difference(rows: Ints) -> FeatureDifference:
        return FeatureDifference(chosen_PF, rejected_PF, rows)

    for k, source in enumerate(sources):
        own = train[pairs.source_P[train] == source]
        held_out = difference(select[pairs.source_P[select] == source])
        full = fit_linear(difference(own), STRENGTHS, held_out)
        weights.append(full.coefficients)
        for fold in range(-1, folds):
            rest = own[pairs.split.fold_N[own] != fold]
            head = full.coefficients
            if fold >= 0 and len(rest) < len(own):
                strength = [STRENGTHS[full.strength]]
                head = fit_linear(difference(rest), strength, held_out).coefficients
            rows = np.flatnonzero(pairs.split.fold_N == fold)
            values[0, rows, k], values[1, rows, k] = (
                chosen_PF[rows] @ head,
                rejected_PF[rows] @ head,
            )
    spread = values[:, train].reshape(-1, len(sources)).std(0)
    scale = np.where(spread > 0, spread, 1.0)
    names = tuple(f"prefers-{source}" for source in sources)
    return names, np.stack(weights) / scale[:, None], values / scale


def with_preferences(values: PairValues, names: tuple[str, ...], extra: Array) -> PairValues:
    """Sets preference objectives beside the rated ones."""
    joined = np.concatenate([values.values_2PO, extra], axis=2)
    return PairValues(values.names + names, joined, values.length_2P)


def pair_arrays(
    values: PairValues,
    penalties: Penalties,
    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    folder: Path,
) -> PairArrays:
    """Writes what the heads train on and returns what the scorers see."""
    debiased = values.debiased(penalties)
    difference, biased = debiased[0] - debiased[1], values.values_2PO[0] - values.values_2PO[1]
    np.save(folder / "difference.npy", difference.astype(np.float32))
    np.save(folder / "biased.npy", biased.astype(np.float32))
    chosen, rejected, gate = features
    return PairArrays(folder, difference, biased, gate, chosen, rejected)
