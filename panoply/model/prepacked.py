"""Prepacked linear layers: weights laid out once as the CPU's kernels read them, for inference.

`nn.Linear` lays its weight out anew at every call, for kernels that are not the fastest on every
processor. Here oneDNN's are called with a weight that stays laid out, and activation and product of
a gated MLP are part of the kernels' last step, so that nothing is read again: 1.1 times as fast on
two AMD cores (`benchmarks/RESULTS.md`, "Prepacked linear layers"). Scores move by rounding.

A prepacked model computes and nothing else: its weights cannot be saved, trained, moved or copied.

Legend: `T` tokens, `D` width of the input, `E` width of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HINT = 512
"""Tokens of a row that the layout is made for; rows of 40 to 1,000 lose less than 2 % by it."""
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Types that are prepacked, and the largest relative error of a fused MLP beside the model's."""
OF_ADAPTER = "lora_"
"""Part of the names of layers that adapters bring, whose weights are read by others."""


class PrepackedLinear(nn.Linear):
    """A linear layer with a prepacked weight: y = W x + b, `[..., D]` to `[..., E]`."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(_laid_out(linear.weight.detach()), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor, activation: str = "none") -> Tensor:
        """Returns f(W x + b), with f the identity or "swish"."""
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, activation, [], "")

    def times(self, x_TD: Tensor, factor_TE: Tensor) -> Tensor:
        """Returns (W x + b) * factor, elementwise."""
        return torch.ops.mkldnn._linear_pointwise.binary(
            x_TD, factor_TE, self.weight, self.bias, "mul"
        )


class PrepackedGatedMLP(nn.Module):
    """A gated MLP of prepacked layers: W_down( silu(W_gate x) * W_up x )."""

    def __init__(
        self, gate_proj: PrepackedLinear, up_proj: PrepackedLinear, down_proj: PrepackedLinear
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x_TD: Tensor) -> Tensor:
        """Returns the output `[..., D]` for inputs `[..., D]`."""
        return self.down_proj(self.up_proj.times(x_TD, self.gate_proj(x_TD, "swish")))


def prepack(model: nn.Module, *, fuses: bool = True) -> None:
    """Prepacks the linear layers of a frozen model in place; those off the CPU stay as they are.

    Which layers depends on the model and the build of torch alone, and on no measured time, so that
    all workers on one kind of machine compute the same bits.

    Args:
        model: any module.
        fuses: whether gated MLPs compute in one; False where adapters add to their parts.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for parent_name, parent in list(model.named_modules()):
        if OF_ADAPTER in parent_name:
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and OF_ADAPTER not in name and _takes(child.weight):
                setattr(parent, name, PrepackedLinear(child))
    if not fuses:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if fused := _fused(child):
                setattr(parent, name, fused)


def unpack(model: nn.Module) -> None:
    """Gives a model that was prepacked without fusing its plain linear layers back, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PrepackedLinear):
                plain = nn.Linear(child.in_features, child.out_features, device="meta")
                plain.weight = nn.Parameter(child.weight.to_dense(), requires_grad=False)
                plain.bias = child.bias
                setattr(parent, name, plain)


def laid_out_as(parameter: Tensor, weight: Tensor) -> Tensor:
    """Returns a weight in the layout of a parameter, whose place it is to take."""
    if parameter.is_mkldnn == weight.is_mkldnn:
        return weight
    return _laid_out(weight) if parameter.is_mkldnn else weight.to_dense()


def _laid_out(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, HINT)


def _takes(weight: Tensor) -> bool:
    """Returns whether a weight is frozen, on the CPU, and of a type that its kernels take."""
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return weight.dtype in BOUNDS and weight.device.type == "cpu" and not weight.requires_grad


def _fused(mlp: nn.Module) -> PrepackedGatedMLP | None:
    """Returns the fused form of a gated MLP; None of another module.

    Whether a module computes this formula is checked on numbers: the layers of many models have
    these names, and some of them scale or normalize beside.
    """
    gate, up = getattr(mlp, "gate_proj", None), getattr(mlp, "up_proj", None)
    down = getattr(mlp, "down_proj", None)
    if isinstance(mlp, PrepackedGatedMLP) or not (
        isinstance(gate, PrepackedLinear)
        and isinstance(up, PrepackedLinear)
        and isinstance(down, PrepackedLinear)
    ):
        return None
    fused = PrepackedGatedMLP(gate, up, down)
    noise = torch.Generator().manual_seed(0)
    x_TD = torch.randn(8, gate.in_features, generator=noise).to(gate.weight.dtype)
    try:
        with torch.inference_mode():
            expected_TD, computed_TD = mlp(x_TD), fused(x_TD)
    except (TypeError, RuntimeError):
        return None
    error, bound = (computed_TD - expected_TD).norm(), BOUNDS[gate.weight.dtype]
    return fused if bool(error <= bound * expected_TD.norm()) else None
