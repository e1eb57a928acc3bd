"""Random token trees, and small models of many families that read them."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from panoply.model.tree import Branch, TokenTree

NUM_TOKENS, WINDOW = 97, 6

SMALL = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
}

GROUPED = {"num_key_value_heads": 2, "head_dim": 8}

HALF = ["sliding_attention", "full_attention"] * 2

FAMILIES = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "gemma": GROUPED,
    "gemma2": GROUPED | {"sliding_window": WINDOW, "layer_types": HALF},
    "gemma3_text": GROUPED | {"sliding_window": WINDOW, "layer_types": HALF},
    "gpt_neox": {},
}

PLAIN_ONLY = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
    "rwkv": {"attention_hidden_size": 32},
}
"""Models without positions, without attention, or with layers that no mask reaches."""


def make(family, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | (FAMILIES | PLAIN_ONLY)[family] | changes))
    return AutoModel.from_config(config, dtype=dtype).eval()


def random_trees(seed, num_trees=6):
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return tuple(rng.integers(0, NUM_TOKENS, size=rng.integers(low, high)).tolist())

    trees = []
    for _ in range(num_trees):
        shared, texts = tokens(3, 20), [tokens(2, 15) for _ in range(rng.integers(1, 6))]
        branches = tuple(Branch(text, len(text) // 3, len(text) - 1) for text in texts)
        trees.append(TokenTree(shared, branches, gate=int(rng.integers(len(shared)))))
    return trees


def alike_trees(seed, num_trees=4):
    """Trees whose responses begin alike, some with nothing behind that."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(num_trees):
        start = rng.integers(0, NUM_TOKENS, size=12).tolist()
        ends = [rng.integers(0, NUM_TOKENS, size=n).tolist() for n in (0, 1, 3, 9, 5)]
        texts = [tuple(start[: rng.integers(4, 13)] + end) for end in ends]
        branches = tuple(Branch(text, 2, len(text)) for text in texts)
        shared = tuple(rng.integers(0, NUM_TOKENS, size=rng.integers(2, 15)).tolist())
        trees.append(TokenTree(shared, branches, gate=len(shared) // 2))
    return trees


def relative(a, b):
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
