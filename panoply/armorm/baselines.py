"""Scorers that a gate has to beat: fixed weights on objectives or on features, and a network.

Same pairs, same objectives, same features, same split as the gate's; what chooses, chooses on
*select*. Each is one row of BASELINES.

Legend: `P` pairs, `B` responses, `O` objectives, `F` response features, `D` gate features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from panoply.armorm.head_training import CHUNK, apply_head
from panoply.armorm.mixtures import STRENGTHS, Rows, best_single, fit_linear, fit_simplex
from panoply.armorm.pair_features import PairFeatures
from panoply.data.tables import PairTable
from panoply.measure.metrics import pair_metrics
from panoply.model.gate import Gate
from panoply.types import Array, Floats, Ints, Strings


@dataclass(frozen=True, slots=True)
class Baseline:
    """A scorer without a network, linear in what it reads.

    So its margin on a pair is its score of the difference of the two responses.
    """

    reads: Literal["objectives", "features"]
    fit: Callable[[Rows, Rows], Array]
    """Differences of *train* and of *select* -> parameters."""
    score: Callable[[Array, Array], Array]
    """Values or features `[B, ...]`, parameters -> scores `[B]`."""
    is_rival: bool = False
    """Whether its distance to the gate is reported with an interval, and its calibration."""


def _fit_fixed(train: Rows, select: Rows) -> Array:
    mixture = fit_simplex(train[:])
    return mixture.weights * mixture.scale


def _fit_linear(train: Rows, select: Rows) -> Array:
    return fit_linear(train, STRENGTHS, select).coefficients


def _weighted(inputs: Array, weights: Array) -> Array:
    return inputs @ weights


NO_PARAMETERS = np.empty(0)
BASELINES: Mapping[str, Baseline] = {
    "uniform": Baseline(
        "objectives",
        fit=lambda train, select: NO_PARAMETERS,
        score=lambda values, _: values.mean(1),
    ),
    "best_single": Baseline(
        "objectives",
        fit=lambda train, select: np.array(best_single(select[:])),
        score=lambda values, objective: values[:, int(objective)],
    ),
    "best_fixed": Baseline("objectives", _fit_fixed, _weighted, is_rival=True),
    "linear": Baseline("objectives", _fit_linear, _weighted),
    "linear_bt": Baseline("features", _fit_linear, _weighted, is_rival=True),
}
PER_SOURCE = "per_source."
"""Begins the names of scores by the best fixed weights of one source."""
RIVALS = (*(name for name, baseline in BASELINES.items() if baseline.is_rival), "mlp")
"""Scorers that the gate is compared with first."""
CONTROLS = ("best_fixed_per_source", "gate_mean", "gate_source_mean")
"""Scorers that tell how much of the gate's gain is knowing the source of a prompt."""


@dataclass(frozen=True, slots=True)
class PairInputs:
    """All that scorers see of the pairs."""

    features: PairFeatures
    difference_PO: Array
    """r'(chosen) - r'(rejected), out of fold in *train*."""

    def differences(self, baseline: Baseline, rows: Ints) -> Rows:
        """Returns what a baseline reads of some pairs, chosen minus rejected."""
        if baseline.reads == "objectives":
            return self.difference_PO[rows]
        return self.features.difference(rows)

    def fit(self, baseline: Baseline, train: Ints, select: Ints) -> Array:
        """Returns the parameters of a baseline fitted on rows of *train* and *select*."""
        return baseline.fit(self.differences(baseline, train), self.differences(baseline, select))

    def margins(self, baseline: Baseline, parameters: Array, rows: Ints) -> Array:
        """Returns the margins of a fitted baseline on some pairs, `CHUNK` of them at a time."""
        differences = self.differences(baseline, rows)
        parts = [
            baseline.score(differences[start : start + CHUNK], parameters)
            for start in range(0, len(rows), CHUNK)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class FittedBaselines:
    """Parameters of every baseline, and the best fixed weights `[O]` of each source alone."""

    parameters: Mapping[str, Array]
    per_source: Mapping[str, Array]

    @classmethod
    def fit(cls, pairs: PairTable, inputs: PairInputs) -> FittedBaselines:
        """Fits all of them; a source without training pairs gets no weights of its own."""
        train, select = pairs.split.of("train"), pairs.split.of("select")
        parameters = {name: inputs.fit(each, train, select) for name, each in BASELINES.items()}
        per_source: dict[str, Array] = {}
        for source in sorted(set(pairs.source_P[train])):
            rows = inputs.difference_PO[train[pairs.source_P[train] == source]]
            per_source[str(source)] = _fit_fixed(rows, rows)
        return cls(parameters, per_source)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> FittedBaselines:
        """Reads what `to_arrays` gave; other entries are left alone."""
        return cls(
            {name: arrays.get(name, NO_PARAMETERS) for name in BASELINES},
            {
                name.removeprefix(PER_SOURCE): weights
                for name, weights in arrays.items()
                if name.startswith(PER_SOURCE)
            },
        )

    def to_arrays(self) -> dict[str, Array]:
        """Returns all parameters by name, as they are saved beside a model."""
        arrays = {name: array for name, array in self.parameters.items() if array.size}
        return arrays | {PER_SOURCE + source: w for source, w in self.per_source.items()}

    def scores(self, values_BO: Array, features_BF: Array) -> dict[str, Array]:
        """Returns the score of responses by every baseline, and by each source's weights.

        Args:
            values_BO: r'.
            features_BF: response features.
        """
        inputs = {"objectives": values_BO, "features": features_BF}
        scores = {
            name: baseline.score(inputs[baseline.reads], self.parameters[name])
            for name, baseline in BASELINES.items()
        }
        return scores | {PER_SOURCE + s: values_BO @ w for s, w in self.per_source.items()}

    def margins(self, inputs: PairInputs, source_P: Strings) -> dict[str, Array]:
        """Returns the margins `[P]` by every baseline, NaN where a source has no weights."""
        every = np.arange(len(source_P))
        margins = {
            name: inputs.margins(baseline, self.parameters[name], every)
            for name, baseline in BASELINES.items()
        }
        by_source = np.full(len(source_P), np.nan)
        for source, weights in self.per_source.items():
            rows = source_P == source
            by_source[rows] = inputs.difference_PO[rows] @ weights
        return margins | {"best_fixed_per_source": by_source}


def gate_margins(
    weights_PO: Array, difference_PO: Array, source_P: Strings, train: Ints
) -> dict[str, Array]:
    """Returns the margins of the gate, of its mean weights, and of its mean weights by source.

    The last two tell how much of its gain is routing by source, and how much is within a source.

    Args:
        weights_PO: g(x).
        difference_PO: r'(chosen) - r'(rejected).
        source_P: source of each pair.
        train: rows whose weights are averaged.
    """
    by_source_PO = np.full_like(weights_PO, np.nan)
    for source in set(source_P[train]):
        rows = train[source_P[train] == source]
        by_source_PO[source_P == source] = weights_PO[rows].mean(0)
    return {
        "gate": (weights_PO * difference_PO).sum(1),
        "gate_mean": difference_PO @ weights_PO[train].mean(0),
        "gate_source_mean": (by_source_PO * difference_PO).sum(1),
    }


def gate_weights(gate: Gate, gate_PD: Floats) -> Array:
    """Returns g(x) `[P, O]` of a trained gate: softmax weights times its scale."""
    return apply_head(gate.weights, gate_PD) * float(gate.scale)


def accuracy_left_out(
    pairs: PairTable, inputs: PairInputs, gates: Mapping[str, Gate]
) -> dict[str, dict[str, float]]:
    """Returns the length-balanced accuracy on each source of scorers that never saw that source.

    All pairs of the source count: gate and weights are fitted without it, and the objectives'
    values of training pairs are out of fold.

    Args:
        pairs: the pairs.
        inputs: what scorers see of them.
        gates: by source, the gate that was trained without it.
    """
    train, select = pairs.split.of("train"), pairs.split.of("select")
    table: dict[str, dict[str, float]] = {}
    for source, gate in gates.items():
        rows = np.flatnonzero(pairs.source_P == source)
        fit_on = train[pairs.source_P[train] != source]
        choose_on = select[pairs.source_P[select] != source]
        weights_PO = gate_weights(gate, inputs.features.gate_PD[rows])
        margins = {"gate": (weights_PO * inputs.difference_PO[rows]).sum(1)}
        for name, baseline in BASELINES.items():
            if baseline.is_rival:
                parameters = inputs.fit(baseline, fit_on, choose_on)
                margins[name] = inputs.margins(baseline, parameters, rows)
        table[source] = {"n": float(len(rows))}
        for name, margin in margins.items():
            metrics = pair_metrics(margin, pairs.gap_P[rows], pairs.split.key_N[rows], draws=2)
            table[source][name] = float(metrics["accuracy_length_balanced"])  # pyright: ignore[reportArgumentType]
    return table
