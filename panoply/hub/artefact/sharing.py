"""Reward models of adapters that share one loaded backbone: which do, and how one is put onto it.

Two models share a backbone where its weights are the same: of our folders by the hashes in their
seals, of published adapters by the folder or hub name of their base model.
"""

from __future__ import annotations

from typing import TypeAlias

from panoply.data.schema import digest
from panoply.files import read_json
from panoply.hub.artefact.manifest import MANIFEST, ScalarManifest, read_manifest
from panoply.hub.artefact.members import AdapterMembers, load_adapter_members
from panoply.hub.backbone.adapters import CONFIG, SharedBackbone, check_shareable
from panoply.hub.door.fetch import fetch
from panoply.hub.published.lora_classifier import (
    SharedAdapterModel,
    base_of,
    load_shared_adapter,
)
from panoply.seal import SEAL, check_seal

SharedModel: TypeAlias = AdapterMembers | SharedAdapterModel
"""A reward model on a backbone that others may share."""
KEY_CHARACTERS = 12


def backbone_key(where: str) -> str:
    """Returns a name of the backbone that a model's adapters lie on; empty where it has none.

    Args:
        where: folder or hub name of the model.

    Raises:
        FileNotFoundError: there is no such model, or its base model cannot be had.
        ValueError: the model's files cannot be read, or its adapter replaces weights of its base.
    """
    folder = fetch(where)
    if (folder / CONFIG).is_file():
        check_shareable(folder)
        return digest("base", str(base_of(folder).resolve()))[:KEY_CHARACTERS]
    if not (folder / MANIFEST).is_file():
        return ""
    manifest = read_manifest(folder)
    if not isinstance(manifest, ScalarManifest) or manifest.members == "heads":
        return ""
    files = read_json(folder / SEAL)["files"]
    hashes = [
        files[name]["sha256"]
        for name in sorted(files)
        if name == "config.json" or (name.startswith("model") and name.endswith(".safetensors"))
    ]
    return digest("files", str(manifest.depth), *hashes)[:KEY_CHARACTERS]


def load_on_backbone(where: str, shared: SharedBackbone | None) -> SharedModel:
    """Loads a model of adapters onto a backbone.

    Args:
        where: folder or hub name of the model.
        shared: the backbone of its key; None loads it, and `SharedModel.shared` is it.

    Raises:
        FileNotFoundError: there is no such model, or it lacks a file.
        ValueError: a file cannot be read, or an adapter does not fit the backbone.
    """
    folder = fetch(where)
    if (folder / MANIFEST).is_file():
        return load_adapter_members(folder, shared)
    check_seal(folder)
    return load_shared_adapter(folder, shared)
