"""From a fitted head to a saved reward model, with the round trip checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoply.armorm.baselines import FittedBaselines
from panoply.armorm.feature_selection import FeatureSpec
from panoply.armorm.training_data import TrainingData
from panoply.config import BackboneConfig
from panoply.config.armorm import ArmoRMConfig
from panoply.hub.artefact.gated import GatedModel, load_gated_model, save_gated_model
from panoply.hub.artefact.manifest import Manifest
from panoply.hub.artefact.round_trip import check_round_trip
from panoply.hub.backbone.backbone import load_backbone
from panoply.model.gate import ScalarHead
from panoply.model.reward_model import GatedHead
from panoply.types import Array


@dataclass(frozen=True, slots=True)
class FittedModel:
    """All that was fitted and is saved."""

    spec: FeatureSpec
    backbone: BackboneConfig
    """The backbone with the dtype and the token budget that were measured."""
    objectives: tuple[str, ...]
    head: GatedHead
    baselines: FittedBaselines
    mlp: ScalarHead


def save_artefact(
    config: ArmoRMConfig,
    data: TrainingData,
    model: FittedModel,
    margin_P: Array,
    scales: Mapping[str, float],
    folder: Path,
) -> dict[str, Any]:
    """Saves the model, loads it again and compares its scores with those of the run.

    Args:
        config: the run.
        data: its data.
        model: its results.
        margin_P: R(chosen) - R(rejected) of all pairs, as the run has them.
        scales: scale to log odds of every scorer.
        folder: of the saved model.

    Raises:
        RuntimeError: the saved model scores differently.
    """
    backbone = load_backbone(
        config.backbone.model,
        depths=(model.spec.depth,),
        rendering=config.backbone.rendering,
        dtype=model.backbone.dtype,
    )
    scale = scales["gate"]
    manifest = Manifest(
        objectives=model.objectives,
        maps={name: rating_map.to_dict() for name, rating_map in data.maps.items()},
        pooling=model.spec.pooling,
        rendering=config.backbone.rendering,
        gate=config.gate,
        temperature=1 / scale if scale else float("inf"),
        seed=config.seed,
        template_hash=backbone.renderer.template_hash,
        bos=tuple(backbone.renderer.bos),
        backbone=config.backbone.model,
        weights_hash=backbone.weights_hash,
        depth=model.spec.depth,
        dtype=str(backbone.decoder.dtype).removeprefix("torch."),
        data=data.summary,
    )
    baselines = {name: torch.tensor(a) for name, a in model.baselines.to_arrays().items()}
    baselines |= {f"scale.{name}": torch.tensor(value) for name, value in scales.items()}
    baselines |= {f"mlp.{name}": tensor for name, tensor in model.mlp.state_dict().items()}
    splits = (data.ratings.split, data.pairs.split)
    seen = np.concatenate([split.key_N[split.part_N != "test"] for split in splits])
    save_gated_model(GatedModel(backbone, model.head, manifest), folder, baselines, list(seen))
    saved = load_gated_model(folder)
    saved.backbone.token_budget = model.backbone.token_budget
    drift = check_round_trip(
        folder,
        saved,
        data.texts.pairs[0],
        data.pairs.split.of("test"),
        margin_P,
        bound=1e-3 if manifest.dtype == "float32" else 0.1,
    )
    return {"round_trip_drift": drift, "temperature": manifest.temperature}
