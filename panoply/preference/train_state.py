"""The weights that are trained, on one worker or sharded over all, with their optimizer.

A state is a nested mapping of whole tensors on the CPU, whatever the workers hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from panoply.config.preference import Parallel
from panoply.model.reward_net import RewardNet
from panoply.preference.distributed import Group

WHOLE = StateDictOptions(
    full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False
)


@dataclass(frozen=True, slots=True)
class TrainState:
    """Trained parameters and AdamW: the backbone's at one rate, the head's, if any, at another."""

    net: RewardNet
    optimizer: torch.optim.AdamW
    group: Group
    sharded: bool

    @classmethod
    def of(
        cls,
        net: RewardNet,
        group: Group,
        *,
        lr: float,
        head_lr: float,
        weight_decay: float,
        parallel: Parallel = "ddp",
    ) -> TrainState:
        """Makes the optimizer, and shards the backbone where that is asked for."""
        sharded = parallel == "fsdp" and group.size > 1
        if sharded:
            shard(net)
        backbone = [
            p for n, p in net.named_parameters() if p.requires_grad and not n.startswith("head.")
        ]
        head = [net.head.weight] if net.head.weight.requires_grad else []
        groups: list[dict[str, Any]] = [
            {"params": params, "lr": peak, "peak": peak}
            for params, peak in ((head, head_lr), (backbone, lr))
            if params
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        return cls(net, optimizer, group, sharded)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.net.parameters() if p.requires_grad]

    @property
    def idle(self) -> Callable[[int], int] | None:
        """Tells how many forwards to run for nothing: sharded workers compute in step."""
        return (lambda count: self.group.most(count) - count) if self.sharded else None

    def clip(self, max_norm: float) -> float:
        """Sums the gradients of all workers, scales them to a norm, and returns what it was."""
        whole = [p for p in self.parameters if not isinstance(p, DTensor)]
        self.group.sum_gradients(whole)
        squares = torch.zeros((), dtype=torch.float64)
        for parameter in self.parameters:
            if (grad := parameter.grad) is not None:
                norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
                full = norm.full_tensor() if isinstance(norm, DTensor) else norm
                squares += full.detach().double().cpu() ** 2
        norm = float(squares.sqrt())
        scale = max_norm / (norm + 1e-6)
        if scale < 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        return norm

    def step(self, rate: float) -> None:
        """Moves the weights, at a share of the peak rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        self.optimizer.step()

    def trained(self) -> dict[str, Tensor]:
        """Returns what is trained, whole; every worker takes part."""
        found = get_model_state_dict(self.net, options=WHOLE)
        # A frozen weight that is tied to another has a name that torch does not know for frozen.
        names = {name for name, p in self.net.named_parameters() if p.requires_grad}
        return {name: cast(Tensor, found[name]).clone() for name in found if name in names}

    def state(self) -> dict[str, Any]:
        """Returns all that a checkpoint needs of the weights; every worker takes part."""
        optimizer = get_optimizer_state_dict(self.net, self.optimizer, options=WHOLE)
        return {"trained": self.trained(), "optimizer": optimizer}

    def restore(self, trained: Mapping[str, Tensor]) -> None:
        """Sets what is trained to what it was."""
        set_model_state_dict(self.net, dict(trained), options=WHOLE)

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, whatever number of workers it comes from."""
        self.restore(state["trained"])
        set_optimizer_state_dict(
            self.net, self.optimizer, optim_state_dict=dict(state["optimizer"]), options=WHOLE
        )


def shard(net: RewardNet) -> None:
    """Shards the backbone over all workers, layer by layer (FSDP2). The head stays whole.

    Gradients come out as sums over the workers, like those of the head.
    """
    assert net.decoder is not None
    for layer in net.decoder.layers:
        fully_shard(layer)
    fully_shard(net, ignored_params=set(net.head.parameters()))
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the only sum that gloo knows too
