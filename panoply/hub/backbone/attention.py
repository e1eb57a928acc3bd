"""Attention by trees inside Hugging Face models, through transformers' `AttentionInterface`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from panoply.model.attention import AttentionPlan, attend, tree_attention
from panoply.model.decoder import Decoder
from panoply.model.flex import (
    VARIABLE,
    FlexPlan,
    KernelError,
    choose_kernel,
    flex_tree_attention,
    takes_flex,
)
from panoply.model.forward import agrees_with, comparison_trees, encode_plain

NAME = "panoply_tree"


def tree_attention_forward(
    module: Any,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: AttentionPlan | FlexPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes a model's attention: by trees where a plan is passed, else as transformers does.

    `kwargs` are transformers' own: scaling, dropout, sliding_window, softcap.
    """
    softcap, window = kwargs.get("softcap"), kwargs.get("sliding_window")
    options: dict[str, Any] = {"scale": kwargs.get("scaling"), "softcap": softcap}
    dropout = kwargs.get("dropout") or 0.0
    if isinstance(tree, FlexPlan):
        if takes_flex(query_BHTD, value_BKTD, dropout):
            return flex_tree_attention(
                query_BHTD, key_BKTD, value_BKTD, tree, window=window, **options
            ), None
        tree = tree.calls
    options["dropout"] = dropout
    if tree is not None:
        return tree_attention(
            query_BHTD, key_BKTD, value_BKTD, tree, window=window, **options
        ), None
    if softcap is None:
        return sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, **kwargs
        )
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask >= 0
    output_BHTD = attend(query_BHTD, key_BKTD, value_BKTD, attention_mask, **options)
    return output_BHTD.transpose(1, 2), None


def attend_by_trees(decoder: Decoder) -> bool:
    """Sets a model's attention to go by trees, if it then gives the features that it gave before.

    It stays as it was where its attention is not exchangeable, hands no plan on, or has a term
    that tree attention lacks (sinks, position biases).

    Raises:
        panoply.model.flex.KernelError: FlexAttention does not compile, or is not exact here.
    """
    model: Any = decoder.model
    before = getattr(decoder.config, "_attn_implementation", None)
    if before is None or not decoder.takes_positions:
        return False
    plain = encode_plain(decoder, comparison_trees(decoder), batch_size=1)
    AttentionInterface.register(NAME, tree_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, TypeError, AttributeError):
        return False
    decoder.attends_by_trees, decoder.kernel = True, choose_kernel(decoder.device)
    if decoder.config._attn_implementation == NAME and agrees_with(decoder, plain):
        return True
    if decoder.kernel == "flex":
        decoder.kernel = "calls"
        if agrees_with(decoder, plain):
            raise KernelError(
                f"FlexAttention gives {type(model).__name__} other features on {decoder.device} "
                f"than separate sequences, and several calls a layer give the same: set "
                f"{VARIABLE}=calls, and report this with the output of `python -m "
                "torch.utils.collect_env`"
            )
    decoder.attends_by_trees = False
    model.set_attn_implementation(before)
    return False
