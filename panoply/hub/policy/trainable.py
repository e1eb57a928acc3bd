"""Language models made ready for training: the trained part, its precision, and a head.

Trained parameters are float32 and the forward runs in `dtype` under autocast; frozen ones are held
in `dtype`. Dropout is off, so that a step does not depend on how many workers share it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never, cast

import torch
from torch import Tensor, nn

from panoply.config.preference import Full, HeadOnly, LastLayers, Lora, TrainedBackboneConfig
from panoply.hub.backbone.attention import attend_by_trees
from panoply.hub.backbone.pretrained import choose_dtype, resolve
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.door.loading import load_config, load_model, load_tokenizer
from panoply.hub.policy.first_head import make_head
from panoply.model.decoder import Decoder, cut, with_layers
from panoply.model.device import best_device
from panoply.model.forward import comparison_trees, row_states, takes_tree_masks
from panoply.model.reward_net import RewardNet
from panoply.model.tree import TokenTree

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of classes whose checkpoints hold a trained language-model head."""


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A network that is trained: those of its parameters with `requires_grad`."""

    net: RewardNet
    renderer: Renderer
    dtype: torch.dtype
    """Precision of the forward."""
    model: nn.Module
    """The whole decoder stack; `net` may hold its upper part alone, with the same parameters."""
    frozen_prefix: Decoder | None
    """The frozen part below `net`, where its outputs are computed once."""
    lora: Any
    """The peft model around `model` where adapters are trained, else None."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.net.head.weight.device

    @property
    def num_layers(self) -> int:
        """Number of layers of the whole stack."""
        return int(cast(Any, self.model.config).num_hidden_layers)

    def autocast(self) -> torch.autocast:
        """Returns the context in which `net` computes."""
        on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=on)

    @torch.no_grad()
    def prefix_activations(self, tree: TokenTree) -> Tensor:
        """Returns the trained part's input for a tree: see `RewardNet.forward`."""
        assert self.frozen_prefix is not None
        with self.autocast():
            states_TD, layout = row_states(self.frozen_prefix, [tree])
        if self.net.decoder is None:
            return states_TD[torch.from_numpy(layout.last_R).to(states_TD.device)].float()
        return states_TD.to(self.dtype)

    @contextmanager
    def adapters_off(self) -> Generator[None]:
        """Runs the model without its adapters, as before training."""
        with self.lora.disable_adapter():
            yield

    def backbone(self) -> nn.Module:
        """Returns the decoder stack as a plain model in float32, adapters merged: a copy."""
        if self.lora is None:
            return deepcopy(self.model).float()
        return deepcopy(self.lora).float().merge_and_unload()


def load_trainable(
    config: TrainedBackboneConfig,
    *,
    num_heads: int = 1,
    seed: int = 0,
    policy: bool = False,
    uniform: bool = False,
) -> TrainableModel:
    """Loads a language model, ready for training.

    Args:
        config: the backbone.
        num_heads: heads of an ensemble.
        seed: seed of the parameters that start at random.
        policy: with the language-model head, for token-level losses.
        uniform: holds frozen parameters in float32 too, as sharding asks for one dtype.

    Raises:
        FileNotFoundError: see `panoply.hub.backbone.pretrained.resolve`.
        ValueError: a model that cannot be trained through token trees, split at the layer, or
            whose log-probabilities are not those of its head on its last states.
    """
    torch.manual_seed(seed)
    loaded, whole, lm_head = load_frozen(config, policy=policy)
    model: Any = whole.model
    if lm_head is not None and not gives_log_probs(loaded, whole, lm_head):
        raise ValueError(
            f"{type(loaded).__name__} does more with its logits than its head (caps or scales): "
            "a policy loss would train another model. Take `loss.policy:no-policy-loss`"
        )
    lora, frozen_prefix, trained = None, None, whole
    match config.trained:
        case Lora():
            lora = add_adapters(model, config.trained)
        case Full():
            loaded.requires_grad_(True)
        case LastLayers(num_last=num_last):
            frozen_prefix, trained = split(whole, num_last, config.model)
        case HeadOnly():
            frozen_prefix, trained = whole, None
        case _:
            assert_never(config.trained)
    for parameter in loaded.parameters():
        if parameter.requires_grad or uniform:
            parameter.data = parameter.data.float()
    if config.checkpointing and trained is not None:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    net = RewardNet(trained, first_head(whole, config, num_heads, seed), lm_head)
    renderer = Renderer(load_tokenizer(Path(resolve(config.model))), config.rendering)
    dtype = choose_dtype(config.dtype, whole.device)
    return TrainableModel(net, renderer, dtype, model, frozen_prefix, lora)


def load_untrained(config: TrainedBackboneConfig, *, num_heads: int, seed: int) -> RewardNet:
    """Loads the network that training begins with, frozen and whole.

    It has a language-model head where the checkpoint is a language model whose log-probabilities
    are those of that head, and no layer is cut away. Arguments and errors as of `load_trainable`.
    """
    names: list[str] = load_config(Path(resolve(config.model))).architectures or []
    speaks = config.depth == 1 and any(name.endswith(LANGUAGE_MODELS) for name in names)
    loaded, whole, lm_head = load_frozen(config, policy=speaks)
    if lm_head is not None and not gives_log_probs(loaded, whole, lm_head):
        lm_head = None
    return RewardNet(whole, first_head(whole, config, num_heads, seed), lm_head)


def load_frozen(
    config: TrainedBackboneConfig, *, policy: bool
) -> tuple[nn.Module, Decoder, nn.Module | None]:
    """Returns a model without gradients, its decoder to the depth that is kept, and its LM head.

    Raises:
        ValueError: a model that does not run on token trees.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    folder, device = Path(resolve(config.model)), best_device()
    dtype = choose_dtype(config.dtype, device)
    auto_class: Any = AutoModelForCausalLM if policy else AutoModel
    loaded: Any = load_model(auto_class, folder, dtype=dtype, unused=None).to(device)
    model: Any = loaded.base_model if policy else loaded
    no_dropout(model)
    num_layers = max(1, round(config.depth * int(model.config.num_hidden_layers)))
    cut(model, num_layers)
    loaded.requires_grad_(False)
    whole = Decoder(model, [num_layers], trainable=True)
    if not (attend_by_trees(whole) or takes_tree_masks(whole)):
        raise ValueError(
            f"{config.model!r} takes neither tree attention nor a tree mask, so it cannot be "
            "trained through token trees: take a decoder with attention and positions"
        )
    return loaded, whole, loaded.get_output_embeddings() if policy else None


def first_head(
    whole: Decoder, config: TrainedBackboneConfig, num_heads: int, seed: int
) -> nn.Linear:
    """Returns the head that training begins with, beside its decoder."""
    spread = float(cast(Any, whole.model.config).initializer_range)
    return make_head(config, whole.hidden_size, num_heads, seed, spread).to(whole.device)


def no_dropout(model: nn.Module) -> None:
    """Turns dropout off for good, also in training mode, which gradient checkpointing asks for."""
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            cast(Any, module).attention_dropout = 0.0


def add_adapters(model: nn.Module, config: Lora) -> Any:
    """Puts adapters into all linear layers, in place (LoRA, arXiv 2106.09685)."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear")  # pyright: ignore[reportArgumentType]
    return get_peft_model(cast(Any, model), lora)


def split(whole: Decoder, num_last: int, name: str) -> tuple[Decoder, Decoder]:
    """Returns the frozen lower part and the last layers, made trainable.

    Args:
        whole: the decoder stack.
        num_last: layers of the trained part.
        name: name of the model, for messages.

    Raises:
        ValueError: fewer layers than are to be trained, or both parts in turn differ from the
            whole.
    """
    num_layers = whole.depths[-1]
    if num_last >= num_layers:
        raise ValueError(
            f"`backbone.trained.num_last` is {num_last}, but {num_layers} layers are kept: train "
            "fewer, or take `backbone.trained:full`"
        )
    at = num_layers - num_last
    lower = _part(whole, 0, at)
    upper = _part(whole, at, num_layers)
    trees = comparison_trees(whole)
    with torch.no_grad():
        through = row_states(upper, trees, [row_states(lower, [tree])[0] for tree in trees])[0]
        direct = row_states(whole, trees)[0]
    bound = 1e-4 if whole.dtype == torch.float32 else 5e-2
    if not bool((through - direct).norm() <= bound * direct.norm()):
        raise ValueError(
            f"{name!r} cannot be split at layer {at}: its upper layers on the states of its lower "
            "ones are not the whole model. Take `backbone.trained:lora` or `backbone.trained:full`"
        )
    for part in (upper.layers, upper.norm):
        part.requires_grad_(True)
    return lower, upper


def _part(whole: Decoder, start: int, stop: int) -> Decoder:
    part = Decoder(with_layers(whole.model, start, stop), [stop - start], trainable=True)
    part.attends_by_trees, part.kernel = whole.attends_by_trees, whole.kernel
    return part


@torch.no_grad()
def gives_log_probs(causal: Any, decoder: Decoder, lm_head: nn.Module) -> bool:
    """Returns whether the head on the last states gives the model's logits, but for a constant.

    It does not where the model scales, caps or shifts its logits.
    """
    tokens_BT = torch.tensor([comparison_trees(decoder)[0].shared], device=decoder.device)
    expected = causal(input_ids=tokens_BT).logits.float().log_softmax(-1)
    computed = lm_head(decoder.states(tokens_BT)[-1]).float().log_softmax(-1)
    bound = 1e-3 if decoder.dtype == torch.float32 else 0.2
    return torch.allclose(expected, computed, atol=bound)
