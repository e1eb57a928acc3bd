"""LoRA adapters as folders that peft loads onto the causal model, and that training resumes.

Trained names are those of `panoply.model.reward_net.RewardNet`; a folder has peft's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from panoply.hub.backbone.pretrained import resolve
from panoply.hub.door.checkpoint import read_fields, read_tensors
from panoply.hub.door.fetch import is_hub_name
from panoply.hub.policy.trainable import TrainableModel
from panoply.seal import check_seal

FILE = "adapter_model.safetensors"


def save_adapter(
    trainable: TrainableModel, params: Mapping[str, Tensor], name: str, folder: Path
) -> None:
    """Writes adapters.

    Args:
        trainable: the network with adapters.
        params: `panoply.preference.train_state.TrainState.params`.
        name: name of the model below the adapters.
        folder: folder that is written.
    """
    config: Any = deepcopy(trainable.lora.peft_config["default"])
    is_local = Path(name).is_dir() or not is_hub_name(name)
    config.base_model_name_or_path = resolve(name) if is_local else name
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_peft_name(trainable, key): value.contiguous() for key, value in params.items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)


def read_adapter(trainable: TrainableModel, folder: Path) -> dict[str, Tensor]:
    """Returns adapters by their trained names.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: they belong to another model, have another rank or scale, or are not those that
            were saved.
    """
    check_seal(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {FILE}: name a folder that a round left")
    tensors = read_tensors(folder / FILE)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    names: dict[str, str] = {}
    trained_shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in trainable.net.named_parameters():
        if parameter.requires_grad:
            key = _peft_name(trainable, name)
            names[key], trained_shapes[key] = name, tuple(parameter.shape)
    if shapes != trained_shapes:
        strange = sorted(set(shapes) ^ set(names)) or sorted(shapes)
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model: they differ in "
            f"{strange[:2]} or in `backbone.trained.rank`; start from adapters of the same "
            "configuration"
        )
    saved = read_fields(folder / "adapter_config.json")
    config = trainable.lora.peft_config["default"]
    saved_scale, scale = saved["lora_alpha"] / saved["r"], config.lora_alpha / config.r
    if saved_scale != scale:
        raise ValueError(
            f"the adapters in {str(folder)!r} are scaled by {saved_scale:g}, these by "
            f"{scale:g}: take the same `backbone.trained.alpha`"
        )
    return {name: tensors[key] for key, name in names.items()}


def _peft_name(trainable: TrainableModel, name: str) -> str:
    """Returns peft's name of a parameter, on the causal model."""
    inner: Any = trainable.model
    within = name.removeprefix("model.").replace(".default.", ".")
    return f"base_model.model.{inner.base_model_prefix}.{within}"
