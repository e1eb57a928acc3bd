"""Averaging of scalar models: every parameter of the result is the mean of theirs.

    theta = 1/M sum_m theta_m

"Averaging of top RMs" of arXiv 2312.07401, and weight-averaged reward models of arXiv 2401.12187.
The mean is a sensible model where all were trained from the same weights; it is no ensemble: it
costs what one model costs. No temperature fits it until one is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from panoply.hub.artefact.classifier import check_vacant
from panoply.hub.artefact.manifest import ScalarManifest, read_manifest
from panoply.hub.artefact.scalar import ScalarModel, load_scalar_model, save_scalar_model
from panoply.hub.door.loading import load_config


def average_models(folders: Sequence[Path], out: Path) -> float:
    """Averages scalar models of one architecture, template and rendering into a new folder.

    Heads, and their centers and scales, are averaged member by member. Prompts that any of the
    models has seen count as seen.

    Returns:
        The largest drift of the saved model's scores by transformers alone, over their deviation.

    Raises:
        FileNotFoundError: a folder is no reward model.
        ValueError: no folder is named, one holds no scalar model or one that does not fit the
            first, or `out` holds something.
    """
    check_vacant(out)
    manifests = read_alike(folders)

    # The first model's own memory holds the sum. One at a time: memory holds two models.
    model, share = load_scalar_model(folders[0]), 1 / len(folders)
    mean = _tensors(model)
    for value in mean.values():
        value.mul_(share)
    for folder in folders[1:]:
        for name, value in _tensors(load_scalar_model(folder)).items():
            mean[name].add_(value, alpha=share)

    data: dict[str, Any] = {}
    sources: list[str] = []
    for number, manifest in enumerate(manifests, start=1):
        data |= {f"{kind} of model {number}": entry for kind, entry in manifest.data.items()}
        sources += manifest.sources
    manifest = replace(
        manifests[0],
        temperature=1.0,
        sources=tuple(dict.fromkeys(sources)),
        data=data,
        method={"average of": [dict(manifest.method) for manifest in manifests]},
        centers=tuple(np.mean([manifest.centers for manifest in manifests], axis=0).tolist()),
        scales=tuple(np.mean([manifest.scales for manifest in manifests], axis=0).tolist()),
    )
    hashes = [np.load(folder / "seen.npy", allow_pickle=False) for folder in folders]
    seen = [f"{value:016x}" for value in np.unique(np.concatenate(hashes)).tolist()]
    backbone = model.backbone
    return save_scalar_model(
        backbone.decoder.model, backbone.renderer, model.heads_KD, manifest, out, seen
    )


def read_alike(folders: Sequence[Path]) -> list[ScalarManifest]:
    """Returns the manifests of models that can be averaged; loads no weights.

    Raises:
        FileNotFoundError: a folder is no reward model.
        ValueError: no folder is named, or one holds no scalar model or one that does not fit the
            first.
    """
    manifests = [_scalar_manifest(folder) for folder in folders]
    if not manifests:
        raise ValueError("an average needs at least one model, got none")
    first = _description(manifests[0], folders[0])
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _check_alike(_description(manifest, folder), first, folder, folders[0])
    return manifests


def _scalar_manifest(folder: Path) -> ScalarManifest:
    manifest = read_manifest(folder)
    if not isinstance(manifest, ScalarManifest):
        raise ValueError(
            f"{str(folder)!r} is a gated reward model, which has no mean; name scalar models"
        )
    if manifest.members != "heads":
        raise ValueError(
            f"{str(folder)!r} consists of {manifest.members} beside a frozen backbone, which are "
            "not averaged; name models that were trained with `members` 'heads'"
        )
    return manifest


def _description(manifest: ScalarManifest, folder: Path) -> dict[str, Any]:
    """Returns what models must share for their mean to be a model."""
    config = load_config(folder).to_dict()
    fields = {
        f"config's {name}": value
        for name, value in config.items()
        if not name.startswith("_") and name != "transformers_version"
    }
    return {
        "number of heads": len(manifest.scales),
        "rule": (manifest.rule, manifest.caution),
        "chat template": manifest.template_hash,
        "rendering": manifest.rendering,
        "BOS rule": manifest.bos,
        **fields,
    }


def _tensors(model: ScalarModel) -> dict[str, Tensor]:
    return {"heads": model.heads_KD, **model.backbone.decoder.model.state_dict()}


def _check_alike(
    description: dict[str, Any], first: dict[str, Any], folder: Path, reference: Path
) -> None:
    for name in {**description, **first}:
        here, there = description.get(name), first.get(name)
        if here != there:
            raise ValueError(
                f"{str(folder)!r} cannot be averaged with {str(reference)!r}: its {name} is "
                f"{here!r:.200}, there it is {there!r:.200}. Average models that were trained from "
                "the same backbone in the same way"
            )
