"""Export of a gated run's scalar head: `linear_bt`, one weight per feature, as a classifier.

Legend: `F` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from panoply.files import whole_folder
from panoply.hub.artefact.classifier import check_drift, check_vacant, write_classifier
from panoply.hub.artefact.gated import load_gated_model, pooled
from panoply.hub.artefact.manifest import ScalarManifest, read_manifest
from panoply.hub.artefact.model_card import ScalarDescription, model_card, read_metrics
from panoply.hub.door.checkpoint import read_tensors
from panoply.hub.example_conversations import example_trees, sequences
from panoply.seal import seal

SCORER = "linear_bt"


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    pad_token: str
    num_compared: int
    drift: float
    """Largest difference from the run's own scores, over their deviation."""


def export_scalar(folder: Path, out: Path) -> Exported:
    """Exports the linear Bradley-Terry head of a run's reward model.

    The export is built beside `out`, loaded again and compared; `out` appears when it is right.

    Raises:
        FileNotFoundError: the folder is no reward model of ours.
        ValueError: its features are not those of the last token, the architecture has no
            sequence classifier with a linear head, or `out` holds something.
        RuntimeError: the exported model scores differently.
    """
    check_vacant(out)
    weight_F, scale = _read_head(folder)
    with whole_folder(out) as built:
        model = load_gated_model(folder)
        decoder = model.backbone.decoder
        decoder.model.float()
        written = write_classifier(decoder.model, model.backbone.renderer, weight_F, built)
        scalar = ScalarDescription(SCORER, str(written.tokenizer.pad_token), scale)
        (built / "README.md").write_text(model_card(model.manifest, read_metrics(folder), scalar))
        trees = example_trees(model.backbone.renderer.tokenizer)
        features = model.backbone.features(trees)
        score_R = pooled(features, "last").double() @ weight_F.double()
        seal(built)
        drift = check_drift(score_R, built)
    return Exported(out, scalar.pad_token, len(sequences(trees)), drift)


def _read_head(folder: Path) -> tuple[torch.Tensor, float]:
    """Returns the head's weights `[F]` and its factor to log odds."""
    manifest = read_manifest(folder)
    if isinstance(manifest, ScalarManifest):
        raise ValueError(
            f"{str(folder)!r} is a scalar model: AutoModelForSequenceClassification loads it as it "
            "is, and there is nothing to export"
        )
    if not (folder / "baselines.safetensors").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no baselines.safetensors, so it holds no scalar head to export. "
            "A run leaves a folder that does in OUT/model"
        )
    if manifest.pooling != "last":
        raise ValueError(
            f"the head {SCORER!r} in {str(folder)!r} reads {manifest.pooling!r} features, but a "
            "sequence classifier reads 'last', the last token, alone: run again with "
            "`--backbone.poolings last` and another `--out`, and export that"
        )
    tensors = read_tensors(folder / "baselines.safetensors")
    return tensors[SCORER], float(tensors[f"scale.{SCORER}"])
