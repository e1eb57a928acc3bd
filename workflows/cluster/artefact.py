"""From fitted parts to a saved reward model, with the round trip checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from panoply.armorm.debias import Penalties
from panoply.config.armorm import ArmoRMConfig
from panoply.hub.artefact.gated import GatedModel, load_gated_model, save_gated_model
from panoply.hub.artefact.manifest import Manifest
from panoply.hub.backbone.backbone import load_backbone
from panoply.model.reward_model import GatedHead
from panoply.types import Array
from workflows.cluster.debias import PairValues
from workflows.cluster.ingest import Data
from workflows.cluster.objectives import Stage1
from workflows.cluster.scorers import (
    FixedWeights,
    PairArrays,
    gate_weights,
    load_gate,
    load_mlp,
)

CHECKED_PAIRS = 16
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class LinearParts:
    """What was fitted besides the networks."""

    stage1: Stage1
    preferences_KF: Array
    penalties: Penalties
    fixed: FixedWeights


def save_artefact(
    config: ArmoRMConfig,
    data: Data,
    parts: LinearParts,
    values: PairValues,
    arrays: PairArrays,
    scales: Mapping[str, float],
    out: Path,
) -> dict[str, Any]:
    """Saves `OUT/model`, loads it again and compares its scores with those of the pipeline."""
    stage1 = parts.stage1
    gate = load_gate(arrays.folder, "gate", arrays, config.gate)
    weights_PO = gate_weights(gate, arrays.gate_PD) * float(gate.scale)
    backbone = load_backbone(
        config.backbone.model,
        depths=(stage1.place.depth,),
        rendering=config.backbone.rendering,
        dtype=stage1.probed.config.dtype,
    )
    head = GatedHead(len(values.names), arrays.chosen_PF.shape[1], gate)
    train = data.pairs.split.of("train")
    debiased = values.debiased(parts.penalties)
    fill(head, parts, debiased[:, train].reshape(-1, len(values.names)).mean(0))
    margin_P = (weights_PO * arrays.difference_PO).sum(1)
    scale = scales["gate"]
    manifest = Manifest(
        objectives=values.names,
        maps={name: scale_.to_dict() for name, scale_ in data.maps.items()},
        pooling=stage1.place.pooling,
        rendering=config.backbone.rendering,
        gate=config.gate,
        temperature=1 / scale if scale else float("inf"),
        seed=config.seed,
        template_hash=backbone.renderer.template_hash,
        bos=tuple(backbone.renderer.bos),
        backbone=config.backbone.model,
        weights_hash=backbone.weights_hash,
        depth=stage1.place.depth,
        dtype=str(backbone.decoder.dtype).removeprefix("torch."),
        data=data.summary,
    )
    used = np.concatenate([data.ratings.split.key_N, data.pairs.split.key_N])
    part_of_used = np.concatenate([data.ratings.split.part_N, data.pairs.split.part_N])
    save_gated_model(
        GatedModel(backbone, head, manifest),
        out / "model",
        baseline_tensors(parts.fixed, load_mlp(arrays.folder, arrays).state_dict(), scales),
        list(used[part_of_used != "test"]),
    )
    drift = round_trip(out / "model", data, values, margin_P)
    return {"round_trip_drift": drift, "temperature": manifest.temperature}


def fill(head: GatedHead, parts: LinearParts, center_O: Array) -> None:
    """Copies fitted numbers into the head's buffers. Preference objectives have no intercept."""
    rated, length = parts.stage1.rated.full, parts.stage1.length.full
    num_rated = len(rated.bias)
    weight = np.vstack([rated.weights, parts.preferences_KF])
    bias, unit = np.zeros(len(weight)), np.ones(len(weight))
    bias[:num_rated], unit[:num_rated] = rated.bias, parts.stage1.unit_O
    for name, value in (
        ("weight", weight),
        ("bias", bias),
        ("unit", unit),
        ("length_weight", length.weights[0]),
        ("length_bias", length.bias[0]),
        ("penalty", parts.penalties.penalty),
        ("center", center_O),
    ):
        getattr(head, name).copy_(torch.as_tensor(value, dtype=torch.float32))


def baseline_tensors(
    fixed: FixedWeights, mlp: dict[str, torch.Tensor], scales: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Returns the compared scorers, and every scorer's factor to log odds."""
    tensors = {
        "best_single": torch.tensor(fixed.best_single),
        "best_fixed": torch.tensor(fixed.best_fixed),
        "linear": torch.tensor(fixed.linear),
        "linear_bt": torch.tensor(fixed.linear_bt),
    }
    own = {f"per_source.{s}": torch.tensor(w) for s, w in fixed.best_fixed_per_source.items()}
    own |= {f"scale.{name}": torch.tensor(scale) for name, scale in scales.items()}
    return tensors | own | {f"mlp.{name}": value for name, value in mlp.items()}


def round_trip(folder: Path, data: Data, values: PairValues, margin_P: Array) -> float:
    """Scores some test pairs from their texts with the saved model; returns the largest drift.

    Relative to the spread of the pipeline's margins.

    Raises:
        RuntimeError: the saved model scores differently.
    """
    rows = data.pairs.split.of("test")[:CHECKED_PAIRS]
    model = load_gated_model(folder)
    table = pq.read_table(data.texts.pairs[0], columns=["prompt", "chosen", "rejected"])
    margins: list[float] = []
    for pair in table.take(rows).to_pylist():
        chosen, rejected = model.score(pair["prompt"], [pair["chosen"], pair["rejected"]])
        margins.append(float(chosen - rejected))
    drift = float(np.abs(np.array(margins) - margin_P[rows]).max() / margin_P.std())
    bound = TOLERANCE if model.manifest.dtype == "float32" else 0.1
    if not drift <= bound:
        raise RuntimeError(
            f"the saved model in {str(folder)!r} differs from the run by {drift:.2e} of the "
            f"margins' spread (allowed {bound:g}): do not use it, and report this"
        )
    return drift
