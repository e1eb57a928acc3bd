"""The shared-prefix forward gives every response the features that it would get alone."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
)

from panoply.model.forward import Decoder, encode, encode_plain, takes_tree_masks, tree_mask
from panoply.model.tree import Branch, TokenTree, lay_out, pack

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SMALL)),
    "mistral-window": lambda: MistralModel(MistralConfig(**SMALL, head_dim=8, sliding_window=9)),
    "gemma": lambda: GemmaModel(GemmaConfig(**SMALL, head_dim=8)),
    "gemma2-mixed": lambda: Gemma2Model(Gemma2Config(**SMALL, head_dim=8, sliding_window=9)),
    "gpt-neox": lambda: GPTNeoXModel(
        GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    ),
}


def random_trees(seed, num_trees=6):
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return tuple(rng.integers(0, 97, size=rng.integers(low, high)).tolist())

    trees = []
    for _ in range(num_trees):
        shared = tokens(3, 20)
        branches = []
        for _ in range(rng.integers(1, 6)):
            text = tokens(2, 15)
            branches.append(Branch(text, 0, len(text) - 1))
        trees.append(TokenTree(shared, tuple(branches), gate=len(shared) - 2))
    return trees


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_trees_equal_separate_sequences_at_every_depth(family):
    torch.manual_seed(0)
    decoder = Decoder(FAMILIES[family](), depths=[1, 3])
    trees = random_trees(1)
    plain = encode_plain(decoder, trees, batch_size=1)
    for budget, rows in ((40, 3), (200, 1)):
        packed = encode(decoder, trees, budget=budget, rows_per_forward=rows)
        for name in ("gate_GLD", "last_RLD", "mean_RLD"):
            assert relative(getattr(packed, name), getattr(plain, name)) < 1e-4
    assert takes_tree_masks(decoder)


def test_a_depth_is_what_a_model_cut_to_it_returns():
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    short = LlamaModel(LlamaConfig(**SMALL | {"num_hidden_layers": 2}))
    short.load_state_dict({k: v for k, v in state.items() if not k.startswith("layers.2.")})
    trees = random_trees(2)
    deep = encode(Decoder(model, depths=[2, 3]), trees)
    cut = encode(Decoder(short, depths=[2]), trees)
    assert relative(deep.mean_RLD[:, :1], cut.mean_RLD) < 1e-5


def test_a_branch_sees_its_ancestors_and_itself_only():
    row = pack(random_trees(3), budget=200)[0]
    layout = lay_out(row)
    tree, branch = layout.tree_T, layout.branch_T
    for q, seen in enumerate(tree_mask(layout)):
        for k, allowed in enumerate(seen):
            ancestor = branch[k] == -1 or branch[k] == branch[q]
            assert bool(allowed) == bool(k <= q and tree[k] == tree[q] and ancestor)


@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
def test_packing_keeps_every_branch_once_and_the_budget(budget):
    trees = random_trees(4, num_trees=20)
    rows = pack(trees, budget)
    found = sorted((x.tree, x.branch) for row in rows for leaves in row.leaves for x in leaves)
    wanted = [(i, j) for i, tree in enumerate(trees) for j in range(len(tree.branches))]
    assert found == wanted
    for row in rows:
        alone = len(row.trees) == 1 and len(row.trees[0].branches) == 1
        assert row.num_tokens <= budget or alone


def test_a_pair_costs_its_prompt_once():
    branch = Branch(tuple(range(50)), 0, 50)
    tree = TokenTree(tuple(range(100)), (branch, branch), gate=0)
    assert tree.num_tokens == 100 + 2 * 50
    assert tree.num_separate_tokens == 2 * (100 + 50)


def test_positions_are_depths_in_the_tree():
    tree = TokenTree((5, 6, 7), (Branch((1, 2), 0, 2), Branch((3,), 0, 1)), gate=1)
    assert lay_out(pack([tree], 100)[0]).positions_T.tolist() == [0, 1, 2, 3, 4, 3]
