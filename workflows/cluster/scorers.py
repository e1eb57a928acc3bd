"""Everything that turns a pair into a margin: the gate, and all that it has to beat.

Same features, same split, same objectives for all. What chooses, chooses on *select*.

Legend: `P` pairs, `O` objectives, `F` response features, `D` gate features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.fitters import HeadTask, fit_heads, load_head
from panoply.armorm.mixtures import best_single, fit_linear, fit_simplex
from panoply.config.armorm import GateConfig
from panoply.data.tables import PairTable
from panoply.measure.calibration import ece, ece_floor, fit_scale, log_loss
from panoply.measure.intervals import macro_interval, paired_interval
from panoply.measure.metrics import Metrics, macro, pair_metrics
from panoply.model.gate import Gate, ScalarHead, make_gate
from panoply.types import Array, Ints, Strings
from workflows.cluster.ray_cluster import run_train

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
BIASED = "gate-biased"
MLP = GateConfig(hidden_size=256, num_hidden=1, dropout=0.3, num_steps=600, eval_every=25)
"""The pooled head that the gate is compared with; stopped on *select* like the gate."""


@dataclass(frozen=True, slots=True)
class FeatureDifference:
    """Features of chosen minus rejected responses of some pairs, read from disk by slice."""

    chosen_PF: NDArray[np.float32]
    rejected_PF: NDArray[np.float32]
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
class PairArrays:
    """What scorers see of the pairs; features are memory-mapped files in `folder`."""

    folder: Path
    difference_PO: Array
    """r'(chosen) - r'(rejected), out of fold in *train*."""
    biased_PO: Array
    """r(chosen) - r(rejected): before length is taken out."""
    gate_PD: NDArray[np.float32]
    chosen_PF: NDArray[np.float32]
    rejected_PF: NDArray[np.float32]

    def feature_difference(self, rows: Ints) -> FeatureDifference:
        """Returns the features of the chosen minus those of the rejected response."""
        return FeatureDifference(self.chosen_PF, self.rejected_PF, rows)


@dataclass(frozen=True, slots=True)
class FixedWeights:
    """The scorers without a network: weights over r', or over features."""

    best_single: int
    best_fixed: Array
    """[O], simplex weights times their scale"""
    best_fixed_per_source: Mapping[str, Array]
    linear: Array
    linear_bt: Array
    """[F]"""


def train_heads(tasks: Sequence[HeadTask], folder: Path, num_workers: int, run: Path) -> None:
    """Trains gates and MLPs on Ray Train, data-parallel; what is already saved is kept."""
    config = {"folder": str(folder.absolute()), "tasks": list(tasks), "threads": 1}
    run_train(fit_heads, config, num_workers, run, f"heads-{folder.name}")


def head_tasks(
    pairs: PairTable, gate: GateConfig, seed: int, *, leave_one_out: bool
) -> list[HeadTask]:
    """Returns the heads of a run: gate, MLP, and gates for comparison.

    These are the gate on objectives that still hold length, and without each source in turn.
    """
    train, select = pairs.split.of("train"), pairs.split.of("select")
    tasks = [
        HeadTask("gate", "gate", train, select, gate, seed),
        HeadTask(BIASED, "gate", train, select, gate, seed, values="biased"),
        HeadTask("mlp", "mlp", train, select, MLP, seed),
    ]
    sources = sorted(set(pairs.source_P))
    for source in sources if leave_one_out and len(sources) > 1 else ():
        other = pairs.source_P != source
        name = f"gate-without-{sources.index(source)}"
        tasks.append(HeadTask(name, "gate", train[other[train]], select[other[select]], gate, seed))
    return tasks


def fit_fixed(pairs: PairTable, arrays: PairArrays) -> FixedWeights:
    """Fits the fixed combinations and the linear Bradley-Terry head."""
    train, select = pairs.split.of("train"), pairs.split.of("select")
    d, x = arrays.difference_PO, arrays.feature_difference
    per_source: dict[str, Array] = {}
    for source in sorted(set(pairs.source_P)):
        rows = train[pairs.source_P[train] == source]
        if len(rows):
            mixture = fit_simplex(d[rows])
            per_source[str(source)] = mixture.weights * mixture.scale
    pooled = fit_simplex(d[train])
    return FixedWeights(
        best_single=best_single(d[select]),
        best_fixed=pooled.weights * pooled.scale,
        best_fixed_per_source=per_source,
        linear=fit_linear(d[train], STRENGTHS, d[select]).coefficients,
        linear_bt=fit_linear(x(train), STRENGTHS, x(select)).coefficients,
    )


def fixed_margins(fixed: FixedWeights, arrays: PairArrays, source_P: Strings) -> dict[str, Array]:
    """Margins of the scorers without a network; NaN where a source has no weights of its own."""
    d = arrays.difference_PO
    own = np.full(len(d), np.nan)
    for source, weights in fixed.best_fixed_per_source.items():
        own[source_P == source] = d[source_P == source] @ weights
    return {
        "uniform": d.mean(1),
        "best_single": d[:, fixed.best_single],
        "best_fixed": d @ fixed.best_fixed,
        "best_fixed_per_source": own,
        "linear": d @ fixed.linear,
        "linear_bt": arrays.chosen_PF @ fixed.linear_bt - arrays.rejected_PF @ fixed.linear_bt,
    }


@torch.no_grad()
def gate_weights(gate: Gate, features_PD: NDArray[np.float32], chunk: int = 8192) -> Array:
    """Returns the gate's softmax weights `[P, O]`."""
    parts = [
        gate.weights(torch.from_numpy(np.array(features_PD[i : i + chunk]))).double().numpy()
        for i in range(0, len(features_PD), chunk)
    ]
    return np.concatenate(parts)


def gate_margins(
    weights_PO: Array, scale: float, difference_PO: Array, source_P: Strings, train: Ints
) -> dict[str, Array]:
    """Margins of the gate, of its mean weights, and of its mean weights within each source.

    How much of its gain is routing by source, and how much is within a source.
    """
    own = np.full_like(weights_PO, np.nan)
    for source in set(source_P):
        rows = train[source_P[train] == source]
        if len(rows):
            own[source_P == source] = weights_PO[rows].mean(0)
    mean = weights_PO[train].mean(0)
    return {
        "gate": scale * (weights_PO * difference_PO).sum(1),
        "gate_mean": scale * difference_PO @ mean,
        "gate_source_mean": scale * (own * difference_PO).sum(1),
    }


def weights_by_domain(
    weights_PO: NDArray[np.floating[Any]],
    names: Sequence[str],
    domain_P: Strings,
    rows: Ints,
) -> dict[str, dict[str, float]]:
    """Returns the gate's mean weight on each objective in each domain."""
    return {
        str(domain): dict(
            zip(names, weights_PO[rows[domain_P[rows] == domain]].mean(0).tolist(), strict=True)
        )
        for domain in sorted(set(domain_P[rows]))
    }


@torch.no_grad()
def mlp_margins(head: ScalarHead, arrays: PairArrays, chunk: int = 8192) -> Array:
    """Margins of the pooled MLP head."""
    parts: list[Array] = []
    for i in range(0, len(arrays.chosen_PF), chunk):
        chosen, rejected = (
            torch.from_numpy(np.array(x[i : i + chunk]))
            for x in (arrays.chosen_PF, arrays.rejected_PF)
        )
        parts.append((head(chosen) - head(rejected)).double().numpy())
    return np.concatenate(parts)


def load_gate(folder: Path, name: str, arrays: PairArrays, config: GateConfig) -> Gate:
    """Loads a trained gate."""
    gate = make_gate(arrays.gate_PD.shape[1], arrays.difference_PO.shape[1], config)
    load_head(folder / f"{name}.safetensors", gate)
    return gate


def load_mlp(folder: Path, arrays: PairArrays) -> ScalarHead:
    """Loads the trained MLP head."""
    head = ScalarHead(arrays.chosen_PF.shape[1], hidden_size=MLP.hidden_size, dropout=MLP.dropout)
    load_head(folder / "mlp.safetensors", head)
    return head


def fit_logit_scale(margin_P: Array, pairs: PairTable) -> float:
    """Returns the factor fitted on *calibrate* that turns a margin into log odds."""
    return fit_scale(margin_P[pairs.split.of("calibrate")])


def scaled_metrics(margin_P: Array, scale: float, gap_P: Ints, key_P: Strings) -> Metrics:
    """Metrics of one scorer: who wins by its own margins, how surely by its factor to log odds.

    A factor of 0 says that the margins carry no probability; they still rank.
    """
    odds_P = margin_P * scale
    sureness = {"log_loss": log_loss(odds_P), "ece": ece(odds_P), "ece_floor": ece_floor(odds_P)}
    return {**pair_metrics(margin_P, gap_P, key_P), **sureness}


def report_pairs(
    margins: Mapping[str, Array], pairs: PairTable, rows: Ints, scales: Mapping[str, float]
) -> dict[str, Any]:
    """Metrics of every scorer on some rows, pooled, macro over sources and per source.

    Args:
        margins: `[P]` by scorer, in its own unit.
        pairs: the pairs.
        rows: rows to report on.
        scales: factor to log odds by scorer (temperature fitted on *calibrate*).
    """
    gap, key, source = pairs.gap_P[rows], pairs.split.key_N[rows], pairs.source_P[rows]
    report: dict[str, Any] = {}
    for name, margin in margins.items():
        own, scale = margin[rows], scales[name]
        per_source = {
            str(s): scaled_metrics(own[at], scale, gap[at], key[at])
            for s in sorted(set(source))
            if (at := source == s).any()
        }
        between = macro_interval(own, gap, source, key)
        report[name] = {
            **scaled_metrics(own, scale, gap, key),
            "temperature": 1 / scale if scale else float("nan"),
            "macro": {**macro(per_source), "ci95_length_balanced": between["ci95"]},
            "per_source": per_source,
        }
    return report


def compare(
    margins: Mapping[str, Array], pairs: PairTable, rows: Ints, names: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Paired differences in macro length-balanced accuracy, with intervals."""
    columns = (pairs.gap_P[rows], pairs.source_P[rows], pairs.split.key_N[rows])
    return {
        f"{a} - {b}": paired_interval(margins[a][rows], margins[b][rows], *columns)
        for a, b in names
    }


def leave_one_out(
    pairs: PairTable, arrays: PairArrays, folder: Path, config: GateConfig
) -> dict[str, dict[str, float]]:
    """Accuracy on each source of scorers whose weights never saw that source.

    All pairs of the source count: gate and weights are fitted without it, and the objectives'
    values of training pairs are out of fold.
    """
    sources = sorted(set(pairs.source_P))
    train, select = pairs.split.of("train"), pairs.split.of("select")
    d, x = arrays.difference_PO, arrays.feature_difference
    table: dict[str, dict[str, float]] = {}
    for number, source in enumerate(sources if len(sources) > 1 else ()):
        own = np.flatnonzero(pairs.source_P == source)
        fit_on, stop_on = (r[pairs.source_P[r] != source] for r in (train, select))
        gate = load_gate(folder, f"gate-without-{number}", arrays, config)
        margins = {
            "gate": (gate_weights(gate, arrays.gate_PD[own]) * d[own]).sum(1),
            "best_fixed": d[own] @ fit_simplex(d[fit_on]).weights,
            "linear_bt": x(own)[:] @ fit_linear(x(fit_on), STRENGTHS, x(stop_on)).coefficients,
        }
        columns = (pairs.gap_P[own], pairs.split.key_N[own])
        table[str(source)] = {"n": float(len(own))} | {
            name: float(pair_metrics(m, *columns, draws=2)["accuracy_length_balanced"])  # pyright: ignore[reportArgumentType]
            for name, m in margins.items()
        }
    return table
