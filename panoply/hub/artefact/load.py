"""Loading a reward model of any kind: ours by its manifest, others by their layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from panoply.hub.artefact.gated import GatedModel, load_gated_model
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.hub.published.armorm import ArmoRMParts, is_armorm, load_armorm
from panoply.hub.published.checkpoint import Checkpoint
from panoply.hub.published.layouts import load_published
from panoply.hub.published.loading import fetch
from panoply.hub.published.lora_classifier import load_adapter
from panoply.hub.reward_model import RewardModel
from panoply.seal import check_seal


def load_reward_model(name: str | Path, *, trust_remote_code: bool = False) -> RewardModel[Any]:
    """Loads a reward model: a folder of ours, or one that others published.

    `panoply.hub.published.layouts` lists the layouts that load, and what is refused.

    Args:
        name: a folder, or a hub name 'owner/name'.
        trust_remote_code: where the layout is unknown and the model brings a sequence classifier of
            its own, run that code. Known layouts never need it.

    Raises:
        FileNotFoundError: there is no such model, or it lacks a file.
        ValueError: the layout is none of these, a tensor does not fit, or the tokenizer's template
            is not the one the model was trained with.
    """
    folder = fetch(str(name), code=trust_remote_code)
    if (folder / "panoply.json").is_file():
        match read_manifest(folder):
            case Manifest():
                return load_gated_model(folder)
            case ScalarManifest():
                return load_scalar_model(folder)
    check_seal(folder)
    if (folder / "adapter_config.json").is_file():
        return load_adapter(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no reward model folder: it has no panoply.json and no "
            "config.json. A run leaves one in OUT/model"
        )
    checkpoint = Checkpoint.open(folder)
    if is_armorm(checkpoint):
        return _with_manifest(load_armorm(checkpoint))
    return load_published(checkpoint, trust_remote_code=trust_remote_code)


def _with_manifest(parts: ArmoRMParts) -> GatedModel:
    """Returns a published gated model with the manifest that ours have."""
    backbone = parts.backbone
    manifest = Manifest(
        objectives=parts.objectives,
        maps=parts.scales,
        pooling="last",
        rendering=backbone.renderer.rendering,
        gate=parts.gate,
        temperature=1.0,  # its gate is trained on score differences as log odds
        seed=0,
        template_hash=backbone.renderer.template_hash,
        bos=tuple(backbone.renderer.bos),
        backbone=backbone.name,
        weights_hash=backbone.weights_hash,
        depth=backbone.decoder.depths[0],
        dtype=str(backbone.decoder.dtype).removeprefix("torch."),
        data={},
    )
    return GatedModel(backbone, parts.head, manifest)
