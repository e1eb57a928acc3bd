"""LoRA adapters as folders: what peft loads onto the causal model, and what training resumes.

Trained names are those of `panoply.model.reward_net.RewardNet`; a folder has peft's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from panoply.hub.backbone.pretrained import resolve
from panoply.hub.policy.trainable import TrainableModel

FILE = "adapter_model.safetensors"


def save_adapter(
    trainable: TrainableModel, trained: Mapping[str, Tensor], name: str, folder: Path
) -> None:
    """Writes adapters.

    Args:
        trainable: the network whose adapters they are.
        trained: `panoply.preference.train_state.Weights.trained`.
        name: of the model below.
        folder: where they go.
    """
    config: Any = deepcopy(trainable.lora.peft_config["default"])
    config.base_model_name_or_path = resolve(name)
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_outside(trainable, key): value.contiguous() for key, value in trained.items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)


def read_adapter(trainable: TrainableModel, folder: Path) -> dict[str, Tensor]:
    """Returns adapters by their trained names.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: they belong to another model, or have another rank or scale.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {FILE}: name a folder that a round left")
    found = load_file(folder / FILE)
    own = {
        _outside(trainable, name): (name, parameter)
        for name, parameter in trainable.net.named_parameters()
        if parameter.requires_grad
    }
    shapes = {key: tuple(value.shape) for key, value in found.items()}
    if shapes != {key: tuple(parameter.shape) for key, (_, parameter) in own.items()}:
        strange = sorted(set(shapes) ^ set(own)) or sorted(shapes)
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model: they differ in "
            f"{strange[:2]} or in `backbone.rank`; start from adapters of the same configuration"
        )
    saved = json.loads((folder / "adapter_config.json").read_text())
    config = trainable.lora.peft_config["default"]
    scales = [saved["lora_alpha"] / saved["r"], config.lora_alpha / config.r]
    if scales[0] != scales[1]:
        raise ValueError(
            f"the adapters in {str(folder)!r} are scaled by {scales[0]:g}, these by "
            f"{scales[1]:g}: take the same `backbone.lora_alpha`"
        )
    return {name: found[key] for key, (name, _) in own.items()}


def _outside(trainable: TrainableModel, name: str) -> str:
    """Returns peft's name of a parameter, on the causal model."""
    inner: Any = trainable.model
    within = name.removeprefix("model.").replace(".default.", ".")
    return f"base_model.model.{inner.base_model_prefix}.{within}"
