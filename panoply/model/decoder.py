"""A Hugging Face decoder stack, cut to a depth, that returns states at several depths.

Legend: `B` rows of one forward, `T` tokens of a row, `D` hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

Kernel: TypeAlias = Literal["calls", "flex"]
"""Computation of tree attention: in a call for each family of siblings, or in one for the row."""

FINAL_NORMS = (
    "norm",
    "final_layer_norm",
    "final_layernorm",
    "final_norm",
    "norm_f",
    "ln_f",
    "ln_out",
    "embedding_norm",
)
"""Names that Hugging Face decoders give the norm after their last layer."""


class Decoder:
    """A Hugging Face decoder stack without its language-model head, cut to a number of layers.

    `depths` count layers from the bottom; the state at depth d is the output of layer d passed
    through the model's final norm, which is what a backbone cut to d layers returns.
    """

    def __init__(self, model: nn.Module, depths: Sequence[int], *, trainable: bool = False) -> None:
        self.model = model if trainable else model.eval().requires_grad_(False)
        self.config = cast(Any, model.config)
        self.depths = tuple(depths)
        name = find_layers(model)
        num_layers = len(cast(nn.ModuleList, model.get_submodule(name)))
        if not depths or min(depths) < 1 or max(depths) > num_layers:
            raise ValueError(f"depths {depths!r} must lie in 1..{num_layers}")
        cut(model, max(depths))
        # After the cut: a reference to the full list would keep the dropped layers in memory.
        self.layers = cast(nn.ModuleList, model.get_submodule(name))
        self.norm = find_norm(model)
        # Recurrent and ALiBi models know no positions: right padding keeps theirs right.
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.attends_by_trees = False
        """Whether the model's attention takes a `tree` plan, as `panoply.hub.backbone.attention`
        sets it up; otherwise rows go through a dense mask."""
        self.kernel: Kernel = "calls"
        """Kernel of tree attention (`panoply.model.flex.choose_kernel`)."""
        self.num_positions = 0
        """Token positions computed so far, those of padding included."""

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that the forward computes in."""
        return next(self.model.parameters()).dtype

    def states(
        self, tokens_BT: Tensor | None = None, *, embeds_BTD: Tensor | None = None, **inputs: Any
    ) -> list[Tensor]:
        """Returns the normed hidden states `[B, T, D]` at each depth, from tokens or from inputs.

        `embeds_BTD` goes into the first layer in place of the tokens' embeddings.
        """
        if embeds_BTD is None:
            inputs["input_ids"] = tokens_BT
        else:
            inputs["inputs_embeds"] = embeds_BTD
        first = embeds_BTD if tokens_BT is None else tokens_BT
        self.num_positions += 0 if first is None else first.shape[0] * first.shape[1]
        below_top: dict[int, Tensor] = {}
        with _recording(self.layers, self.depths, below_top):
            out = self.model(use_cache=False, **inputs)
        top = len(self.layers)
        return [
            out.last_hidden_state if depth == top else self.norm(below_top[depth])
            for depth in self.depths
        ]


@contextmanager
def _recording(
    layers: nn.ModuleList, depths: Sequence[int], states: dict[int, Tensor]
) -> Generator[None]:
    """Stores the outputs of the layers at `depths` in `states` while the context is open."""

    def keep(depth: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[depth] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[d - 1].register_forward_hook(keep(d)) for d in depths if d < len(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module) -> str:
    """Returns the name of the list of decoder layers.

    Raises:
        ValueError: the model has no such list.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no list of {count} decoder layers; "
            "a decoder-only Hugging Face model is needed"
        )
    return min(names, key=len)


def find_norm(model: nn.Module) -> nn.Module:
    """Returns the norm that the stack applies after its last layer: a sibling of the layers.

    Raises:
        ValueError: the model has no such norm.
    """
    stack = dict(model.get_submodule(find_layers(model).rpartition(".")[0]).named_children())
    for name in FINAL_NORMS:
        if name in stack:
            return stack[name]
    raise ValueError(
        f"no final norm found in {type(model).__name__}: {list(stack)}, expected one of "
        f"{FINAL_NORMS}"
    )


def cut(model: nn.Module, num_layers: int) -> None:
    """Keeps the first `num_layers` layers of a decoder stack, in place."""
    _keep(model, 0, num_layers)


def with_layers(model: nn.Module, start: int, stop: int) -> nn.Module:
    """Returns a view of a decoder stack with some of its layers, on the same weights.

    A part that ends below the top has no final norm: it returns the input of the next layer.

    Raises:
        ValueError: the layers are no attribute of the model itself.
    """
    name = find_layers(model)
    if "." in name:
        raise ValueError(
            f"the layers of {type(model).__name__} lie in {name!r}: only a model that holds its "
            "layers itself can be divided"
        )
    view, num_layers = copy(model), len(cast(nn.ModuleList, model.get_submodule(name)))
    view.__dict__["_modules"] = dict(model.named_children())
    view.config = deepcopy(cast(Any, model.config))  # pyright: ignore[reportAttributeAccessIssue]
    norm = next(key for key, module in model.named_children() if module is find_norm(model))
    _keep(view, start, stop)
    if stop < num_layers:
        setattr(view, norm, nn.Identity())
    return view


def _keep(model: nn.Module, start: int, stop: int) -> None:
    name = find_layers(model)
    kept = cast(nn.ModuleList, model.get_submodule(name))[start:stop]
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, kept)
    config = cast(Any, model.config)
    if getattr(config, "layer_types", None):
        # Some configurations derive the types from the number of layers.
        with suppress(AttributeError):
            config.layer_types = list(config.layer_types[start:stop])
    config.num_hidden_layers = stop - start
