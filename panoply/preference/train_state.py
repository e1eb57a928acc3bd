"""Trained parameters with their optimizer, on one worker or sharded over all.

A state dict is a nested mapping of whole tensors on the CPU, whatever the workers hold.
"""

from __future__ import annotations

import math
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
        """Parameters that are trained, as this worker holds them."""
        return [p for p in self.net.parameters() if p.requires_grad]

    @property
    def num_padding_forwards(self) -> Callable[[int], int] | None:
        """Function from this worker's number of forwards to the number that others run beyond it.

        Sharded workers compute in step, so a worker with fewer forwards pads them. None: replicas,
        which need not.
        """
        return (lambda count: self.group.all_reduce_max(count) - count) if self.sharded else None

    def clip(self, max_norm: float) -> float:
        """Sums the gradients of all workers, clips them to a norm, and returns the norm before."""
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
        """Updates the parameters, at a share of the peak learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        self.optimizer.step()

    def params(self) -> dict[str, Tensor]:
        """Returns the trained parameters, whole; every worker takes part."""
        tensors = get_model_state_dict(self.net, options=WHOLE)
        # A frozen parameter that is tied to another has a name that torch does not take for frozen.
        names = {name for name, p in self.net.named_parameters() if p.requires_grad}
        return {name: cast(Tensor, tensors[name]).clone() for name in tensors if name in names}

    def state_dict(self) -> dict[str, Any]:
        """Returns the trained parameters and the optimizer's state; every worker takes part."""
        optimizer = get_optimizer_state_dict(self.net, self.optimizer, options=WHOLE)
        return {"params": self.params(), "optimizer": optimizer}

    def load_params(self, params: Mapping[str, Tensor]) -> None:
        """Sets the trained parameters."""
        set_model_state_dict(self.net, dict(params), options=WHOLE)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores parameters and optimizer from the state of any number of workers."""
        self.load_params(state["params"])
        set_optimizer_state_dict(
            self.net, self.optimizer, optim_state_dict=dict(state["optimizer"]), options=WHOLE
        )


def learning_rate(step: int, num_steps: int, warmup: float) -> float:
    """Returns the share of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        step: number of the step, from 0.
        num_steps: steps of the run.
        warmup: share of the steps in which the rate rises.
    """
    rising = warmup * num_steps
    if step < rising:
        return (step + 1) / (rising + 1)
    along = (step - rising) / max(1.0, num_steps - rising)
    return 0.5 * (1 + math.cos(math.pi * along))


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
