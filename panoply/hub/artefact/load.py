"""Loading a reward model of any kind: ours by its manifest, others by their layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from panoply.config.steps import split_off_rule
from panoply.hub.artefact.gated import GatedModel, load_gated_model
from panoply.hub.artefact.manifest import Manifest, ScalarManifest, read_manifest
from panoply.hub.artefact.members import load_adapter_members
from panoply.hub.artefact.scalar import load_scalar_model
from panoply.hub.door.checkpoint import Checkpoint
from panoply.hub.door.fetch import check_holds_model, fetch
from panoply.hub.published.armorm import ArmoRMParts, is_armorm, load_armorm
from panoply.hub.published.layouts import load_published
from panoply.hub.published.loading import LoadOptions
from panoply.hub.published.lora_classifier import load_adapter
from panoply.hub.published.process import ProcessModel
from panoply.hub.reward_model import RewardModel
from panoply.model.device import Placement, placed
from panoply.seal import check_seal

LoadDType: TypeAlias = Literal["auto", "float32", "bfloat16"]
DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def load_reward_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: LoadDType = "auto",
    revision: str = "",
    max_tokens: int = 0,
    trust_remote_code: bool = False,
) -> RewardModel[Any]:
    """Loads a reward model: a folder of ours, or one that others published.

    `panoply.hub.published.layouts` lists the layouts that load, and what is refused.

    Args:
        name: a folder, or a hub name 'owner/name'; of a process reward model with the rule of its
            steps behind it, as in 'FOLDER?steps=product' (`panoply.config.steps`).
        device: as torch names it; None: the first CUDA device where there is one, else the CPU.
        dtype: precision of the backbone; 'auto': that of its training where the hardware is fast
            at it. Heads are float32 in any case.
        revision: branch, tag or commit of a hub name; empty: its main branch.
        max_tokens: most tokens of a conversation with a published model; 0: as many as it has
            positions. Our models cut as in their training.
        trust_remote_code: where the layout is unknown and the model brings a sequence classifier of
            its own, run that code. Known layouts never need it.

    Raises:
        FileNotFoundError: there is no such model, or it lacks a file.
        ValueError: the layout is none of these, a file cannot be read, a tensor does not fit, the
            tokenizer's template is not the one the model was trained with, or an argument is wrong.
    """
    if str(name).startswith("models:/"):
        raise ValueError(
            f"{str(name)!r} is of MLflow's registry, which the commands of the repository resolve "
            "(jobs.serve, jobs.evaluate); here, name the folder that `mlflow artifacts download "
            f"--artifact-uri {name}` leaves"
        )
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}, got {dtype!r}")
    try:
        place = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be one that torch knows, got {device!r}") from error
    path, rule = split_off_rule(str(name))
    options = LoadOptions(code=trust_remote_code, max_tokens=max_tokens, steps=rule)
    folder = fetch(path, code=trust_remote_code, revision=revision)
    with placed(Placement(place, DTYPES[dtype])):
        return _load(folder, options)


def _load(folder: Path, options: LoadOptions) -> RewardModel[Any]:
    """Loads the model in a folder; see `load_reward_model`."""
    model = _load_kind(folder, options)
    if options.steps and not isinstance(model, ProcessModel):
        raise ValueError(
            f"`steps={options.steps.steps}` stands behind {str(folder)!r}, which is no process "
            "reward model: it has one score of a response, so leave the rule out"
        )
    return model


def _load_kind(folder: Path, options: LoadOptions) -> RewardModel[Any]:
    """Loads the model in a folder by its kind."""
    check_holds_model(folder)
    if (folder / "panoply.json").is_file():
        if options.max_tokens:
            raise ValueError(
                f"`max_tokens` is {options.max_tokens}, and {str(folder)!r} cuts conversations as "
                "in its training (`rendering` in its panoply.json): leave it out"
            )
        match read_manifest(folder):
            case Manifest():
                return load_gated_model(folder)
            case ScalarManifest(members="heads"):
                return load_scalar_model(folder)
            case ScalarManifest():
                return load_adapter_members(folder)
    check_seal(folder)
    if (folder / "adapter_config.json").is_file():
        return load_adapter(folder, options.max_tokens)
    checkpoint = Checkpoint.open(folder)
    if is_armorm(checkpoint):
        return _with_manifest(load_armorm(checkpoint, options.max_tokens))
    return load_published(checkpoint, options)


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
