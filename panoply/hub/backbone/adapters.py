"""One loaded backbone under several adapters, of which one computes at a time.

An adapter is a LoRA in peft's layout, or layers that take the place of the backbone's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from panoply.data.schema import digest
from panoply.hub.backbone.backbone import Backbone, hash_tensors
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.checkpoint import Checkpoint, few, read_fields, read_tensors
from panoply.hub.door.loading import load_adapter_config
from panoply.model.prepacked import laid_out_as, prepack, unpack

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FACTOR = "lora_"
"""Part of the name of every tensor of an adapter that changes the backbone."""
LAYERS = "layers.safetensors"
"""File of the layers that take the place of the backbone's."""
PLAIN_STARTS = (True, False, "gaussian")
"""Values of peft's `init_lora_weights` that leave the backbone's weights alone."""
WRAPPED = "base_model.model."
"""Beginning of the names of an adapter's tensors, as peft writes them."""


class ActiveAdapter:
    """The name of the adapter that computes, which a copy of the backbone follows too."""

    def __init__(self) -> None:
        self.name = ""

    def __deepcopy__(self, memo: Any) -> ActiveAdapter:
        return self


class SharedBackbone:
    """One loaded backbone under several adapters, of which one computes at a time.

    An adapter may be added or removed while others are in use: a forward and a change take turns.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._turn = threading.RLock()
        self._hashes: dict[str, str] = {}
        """Hash of the tensors of each adapter, by the name under which it computes."""
        self._layers: dict[str, dict[str, Tensor]] = {}
        """Weights that take the place of the backbone's, by adapter and by their names there."""
        self._replaced: dict[str, Tensor] = {}
        """The backbone's weights whose place some adapter takes, by their names."""
        self._by_peft: list[Any] = []
        """Layers whose adapters peft computes."""
        self._is_read = False
        """Whether an adapter reads the backbone's weights, as DoRA does."""
        self._num_added = 0
        self._active = ActiveAdapter()

    @property
    def num_adapters(self) -> int:
        """Number of adapters on the backbone."""
        return len(self._hashes)

    def add(self, folder: Path) -> str:
        """Puts the adapter of a folder onto the backbone; returns the name under which it computes.

        Raises:
            FileNotFoundError: the folder has no adapter, or only as a pickle.
            ValueError: it is of another model, or of a kind that does not share a backbone.
        """
        if (folder / LAYERS).is_file():
            return self._add_layers(folder)
        from peft.functional import inject_adapter_in_model, set_peft_model_state_dict

        check_shareable(folder)
        stored = Checkpoint.open(folder, WEIGHTS)
        model: Any = self.backbone.decoder.model
        tensors = {
            _inner_name(key, model.base_model_prefix): stored.read(key)
            for key in stored.shapes
            if FACTOR in key
        }
        config = load_adapter_config(folder)
        config.modules_to_save, config.inference_mode = None, True
        with self._turn:
            if config.use_dora or config.init_lora_weights not in PLAIN_STARTS:
                self._is_read = True
                self._change_layout(unpack)
            self._num_added += 1
            name = f"adapter{self._num_added}"
            try:
                inject_adapter_in_model(config, model, name)
                loaded = set_peft_model_state_dict(model, tensors, adapter_name=name)
                _check_fit(name, loaded.unexpected_keys, loaded.missing_keys)
            except (ValueError, RuntimeError) as error:
                self._delete(name)
                why = " ".join(str(error).split())
                raise ValueError(
                    f"the adapter in {str(folder)!r} does not fit its base model: {why}"
                ) from error
            del model.peft_config  # peft warns where it finds that of an earlier adapter
            model.eval().requires_grad_(False)
            self._hashes[name] = hash_tensors(tensors)
            self._active.name = ""  # peft made the new one active
            self._take_over()
        return name

    def remove(self, name: str) -> None:
        """Takes an adapter off the backbone."""
        with self._turn:
            del self._hashes[name]
            if name in self._layers:
                self._put(self._replaced)
                del self._layers[name]
                self._active.name = ""
            else:
                self._delete(name)

    def prepack(self) -> None:
        """Lays the backbone's weights out for faster inference; adapters may come and go.

        Where one of them reads the backbone's weights, nothing is done.
        """
        with self._turn:
            if not self._is_read:
                self._change_layout(partial(prepack, fuses=False))

    @contextmanager
    def using(self, name: str) -> Generator[None]:
        """Computes with an adapter while the context is open; others wait."""
        with self._turn:
            if name not in self._hashes:
                raise RuntimeError(f"the adapter {name!r} was removed")
            if self._active.name != name:
                for layer in self._by_peft:
                    layer.set_adapter(name, inference_mode=True)
                self._put(self._replaced | self._layers.get(name, {}))
                self._active.name = name
            yield

    def view(self, title: str, renderer: Renderer, adapters: list[str]) -> Backbone:
        """Returns the backbone as a model with some of the adapters sees it, on the same weights.

        Args:
            title: name of the model's backbone.
            renderer: of the model's conversations.
            adapters: names under which its adapters compute.
        """
        seen = copy(self.backbone)
        seen.name, seen.renderer = title, renderer
        hashes = [self._hashes[name] for name in adapters]
        seen.weights_hash = digest(self.backbone.weights_hash, *hashes)
        return seen

    def _take_over(self) -> None:
        """Computes the linear layers with adapters here, and leaves the others to peft.

        peft walks over all modules to change the adapter, and passes three times over a layer's
        result to add to it.
        """
        from peft.tuners.lora import Linear, LoraLayer

        self._by_peft = []
        for layer in self.backbone.decoder.model.modules():
            if type(layer) is Linear:
                cast(Any, layer).forward = partial(_linear, self._active, layer)
            elif isinstance(layer, LoraLayer):
                self._by_peft.append(layer)

    def _add_layers(self, folder: Path) -> str:
        """Adds layers that take the place of the backbone's; see `add`."""
        tensors = read_tensors(folder / LAYERS)
        with self._turn:
            weights: dict[str, Tensor] = {}
            for key, tensor in tensors.items():
                try:  # by its plain name a weight is found below a LoRA too
                    weights[key] = self.backbone.decoder.model.get_parameter(key)
                except AttributeError:
                    weights[key] = tensor.new_empty(0)
                if weights[key].shape != tensor.shape:
                    raise ValueError(
                        f"the layers in {str(folder)!r} do not fit its base model: {key!r} is not "
                        "there, or has another shape"
                    )
            self._put(self._replaced)
            for key in tensors.keys() - self._replaced.keys():
                self._replaced[key] = weights[key].data
            self._num_added += 1
            name = f"adapter{self._num_added}"
            self._layers[name] = {
                key: laid_out_as(weights[key], tensor.to(weights[key].device, weights[key].dtype))
                for key, tensor in tensors.items()
            }
            self._hashes[name] = hash_tensors(tensors)
            self._active.name = ""
        return name

    def _change_layout(self, change: Callable[[nn.Module], None]) -> None:
        """Lays the backbone's weights out anew, and those that take the place of some of them."""
        model = self.backbone.decoder.model
        self._put(self._replaced)
        change(model)
        for tensors in (self._replaced, *self._layers.values()):
            for key, tensor in tensors.items():
                tensors[key] = laid_out_as(model.get_parameter(key), tensor)
        self._active.name = ""

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        """Lets parameters of the backbone be some tensors; nothing is copied."""
        for key, tensor in tensors.items():
            self.backbone.decoder.model.get_parameter(key).data = tensor

    def _delete(self, name: str) -> None:
        from peft.functional import delete_adapter, set_adapter

        model: Any = self.backbone.decoder.model
        set_adapter(model, [], inference_mode=True)  # peft warns of one that is deleted in use
        delete_adapter(model, name, prefix=FACTOR)
        if hasattr(model, "peft_config"):
            del model.peft_config
        self._active.name = ""


def _linear(active: ActiveAdapter, layer: Any, x_D: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Returns W x + s B A x of a layer under the active adapter, or W x where it has none."""
    name = active.name
    if name in layer.lora_variant or layer.lora_bias.get(name):
        layer.set_adapter(name, inference_mode=True)
        return type(layer).forward(layer, x_D, *args, **kwargs)
    result = layer.base_layer(x_D, *args, **kwargs)
    if name in layer.lora_A:
        low = layer.lora_A[name](x_D)
        factor = layer.lora_B[name].weight.T
        rows = result.view(-1, result.shape[-1])
        rows.addmm_(low.view(-1, low.shape[-1]), factor, alpha=layer.scaling[name])
    return result


def check_shareable(folder: Path) -> None:
    """Checks by an adapter's settings that all of it but a head lies beside the backbone's weights.

    Raises:
        FileNotFoundError: the folder has no adapter.
        ValueError: it is no LoRA, or brings weights in place of the backbone's own.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {CONFIG}: name the folder of an adapter")
    fields = read_fields(folder / CONFIG)
    kind = fields.get("peft_type", "LORA")
    saved = set(fields.get("modules_to_save") or ()) - {"score", "classifier"}
    replacing = sorted(
        name
        for name in Checkpoint.open(folder, WEIGHTS).shapes
        if FACTOR not in name and "score" not in name and "v_head" not in name
    )
    bias = fields.get("bias", "none")
    if (
        kind != "LORA"
        or saved
        or replacing
        or bias != "none"
        or fields.get("trainable_token_indices")
    ):
        what = few([*sorted(saved), *replacing]) if saved or replacing else f"{kind}, bias {bias!r}"
        raise ValueError(
            f"the adapter in {str(folder)!r} cannot share a backbone, whose own weights it "
            f"replaces or shifts ({what}): serve it without `--share-backbone`"
        )


def _inner_name(key: str, prefix: str) -> str:
    """Returns the name of an adapter's tensor on the bare decoder.

    Args:
        key: name in the file, on the model with its head.
        prefix: name of the decoder in the model with its head.
    """
    return key.removeprefix(WRAPPED).removeprefix(f"{prefix}.")


def _check_fit(name: str, unexpected: Sequence[str], missing: Sequence[str]) -> None:
    """Checks that an adapter has a place for each tensor, and each of its places has one.

    Args:
        name: of the adapter.
        unexpected: tensors that have no place.
        missing: places, of the whole model, that got none.

    Raises:
        ValueError: it has not.
    """
    empty = [place for place in missing if name in place.split(".")]
    if unexpected or empty:
        raise ValueError(f"{few(sorted([*unexpected, *empty]))} are not in both")
