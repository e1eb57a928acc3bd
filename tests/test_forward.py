"""The shared-prefix forward gives every response the features that it would get alone."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from panoply.hub.backbone.attention import attend_by_trees
from panoply.model.decoder import Decoder
from panoply.model.forward import encode, encode_plain, takes_tree_masks
from panoply.model.tree import Branch, TokenTree
from tests.builders.token_trees import (
    FAMILIES,
    PLAIN_ONLY,
    alike_trees,
    make,
    random_trees,
    relative,
)

DEPTHS = (1, 2, 4)
NAMES = ("gate_GLD", "last_RLD", "mean_RLD")
# Wide initial weights, so that attention moves the states and a wrong mask is seen.
WINDOWED = ("mistral", "gemma2", "gemma3_text")


def cut_to(model, depth):
    """A model of `depth` layers with copied weights, made by transformers alone."""
    config = deepcopy(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    config.num_hidden_layers = depth
    short = AutoModel.from_config(config).eval()
    short.load_state_dict({name: model.state_dict()[name] for name in short.state_dict()})
    return short


@torch.no_grad()
def separate(model, trees):
    """Gate, last and mean states of the last layer, one unpadded sequence at a time, no mask."""
    gate, last, mean = [], [], []
    for tree in trees:
        for branch in tree.branches:
            tokens, offset = [*tree.shared, *branch.tokens], len(tree.shared)
            state_TD = model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
            last.append(state_TD[-1])
            mean.append(state_TD[offset + branch.start : offset + branch.stop].mean(0))
        gate.append(state_TD[tree.gate])
    return [torch.stack(states).float() for states in (gate, last, mean)]


def drift(found, wanted):
    return max(relative(getattr(found, name), getattr(wanted, name)) for name in NAMES)


@pytest.mark.parametrize("by_trees", [True, False], ids=["attention", "mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_depth_equals_a_model_cut_to_it_on_separate_sequences(family, by_trees):
    model, trees = make(family), random_trees(1) + alike_trees(1)
    wanted = [separate(cut_to(model, depth), trees) for depth in DEPTHS]
    decoder = Decoder(model, DEPTHS)
    if by_trees:
        assert attend_by_trees(decoder)
    for packed in (
        encode(decoder, trees, budget=200),
        encode(decoder, trees, budget=40, rows_per_forward=3),
        encode_plain(decoder, trees, batch_size=5),
    ):
        for level, states in enumerate(wanted):
            for name, state_ND in zip(NAMES, states, strict=True):
                assert relative(getattr(packed, name)[:, level], state_ND) < 1e-4
    assert takes_tree_masks(decoder)


@pytest.mark.parametrize("family", WINDOWED)
def test_the_windows_of_these_models_are_shorter_than_the_sequences(family):
    trees = random_trees(1)
    narrow, wide = make(family), make(family, sliding_window=100)
    states = zip(separate(narrow, trees), separate(wide, trees), strict=True)
    assert max(relative(a, b) for a, b in states) > 1e-2


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_are_exact_under_any_budget_and_number_of_rows(seed):
    rng = np.random.default_rng(seed)
    trees = random_trees(100 + seed, num_trees=int(rng.integers(1, 12)))
    decoder = Decoder(make("gemma2"), [2, 4])
    plain = encode_plain(decoder, trees, batch_size=1)
    for budget in (1, int(rng.integers(20, 80)), 1024):
        rows = int(rng.integers(1, 6))
        assert drift(encode(decoder, trees, budget=budget, rows_per_forward=rows), plain) < 1e-4


def test_a_prompt_split_over_rows_has_one_gate_feature():
    branch = Branch((5, 6, 7, 8), 0, 4)
    tree = TokenTree((3, 1, 4), (branch,) * 4, gate=1)
    features = encode(Decoder(make("llama"), [4]), [tree, tree], budget=7)
    assert features.gate_GLD.shape == (2, 1, 32)
    assert relative(features.last_RLD[1:], features.last_RLD[:1]) < 1e-5


def test_pad_and_end_tokens_inside_texts_are_tokens_like_any_other():
    # Token 0 is this model's pad and end token, and fills the padding of a batch.
    model = make("llama")
    model.embed_tokens.weight.data[0] = 0.3  # a fresh pad embedding is zero, a trained one is not
    trees = [
        TokenTree((3, 0, 0, 4), (Branch((0, 5, 0), 0, 3), Branch((6,) * 9, 0, 9)), gate=2),
        TokenTree((0, 7), (Branch((0, 0), 0, 2),), gate=0),
    ]
    wanted = separate(model, trees)
    decoder = Decoder(model, [4])
    for found in (
        encode(decoder, trees, budget=9, rows_per_forward=3),
        encode_plain(decoder, trees),
    ):
        for name, state_ND in zip(NAMES, wanted, strict=True):
            assert relative(getattr(found, name)[:, 0], state_ND) < 1e-4


@pytest.mark.parametrize("family", PLAIN_ONLY)
def test_a_model_that_takes_no_tree_mask_is_found_out_and_runs_on_plain_batches(family):
    model, trees = make(family, num_hidden_layers=2), random_trees(2, 3)
    wanted = separate(model, trees)
    decoder = Decoder(model, [1, 2])
    before = model.config._attn_implementation
    assert not attend_by_trees(decoder)
    assert not takes_tree_masks(decoder)
    assert (decoder.attends_by_trees, model.config._attn_implementation) == (False, before)
    found = encode_plain(decoder, trees, batch_size=4)
    for name, state_ND in zip(NAMES, wanted, strict=True):
        assert relative(getattr(found, name)[:, 1], state_ND) < 1e-4


def test_bfloat16_drifts_by_its_own_rounding_only():
    trees = random_trees(3)
    exact = encode(Decoder(make("llama", initializer_range=0.1), [2, 4]), trees)
    half = make("llama", initializer_range=0.1).to(torch.bfloat16)
    rough = encode(Decoder(half, [2, 4]), trees)
    separate_rough = encode_plain(Decoder(half, [2, 4]), trees, batch_size=1)
    assert takes_tree_masks(Decoder(half, [2, 4]))
    assert rough.last_RLD.dtype == torch.float32
    assert 1e-4 < drift(rough, exact) < 0.05
    assert drift(rough, separate_rough) < 0.05


def test_bfloat16_features_do_not_depend_on_the_neighbours_in_a_row():
    trees = random_trees(3, 20)
    decoder = Decoder(make("llama", torch.bfloat16), [2, 4])
    assert attend_by_trees(decoder)
    alone = encode(decoder, trees, budget=1000)
    # A dense mask over the row drifts by 2e-2 here: its sums run over all of the row's keys.
    for budget in (60, 150):
        assert drift(encode(decoder, trees, budget=budget), alone) < 1e-3


def test_no_trees_give_no_features_on_either_path():
    decoder = Decoder(make("llama"), [1, 4])
    for found in (encode(decoder, []), encode_plain(decoder, [])):
        assert [getattr(found, name).shape for name in NAMES] == [(0, 2, 32)] * 3


def test_features_of_either_path_can_be_trained_on():
    decoder, head = Decoder(make("llama"), [4]), torch.nn.Linear(32, 1)
    for found in (encode(decoder, random_trees(4, 2)), encode_plain(decoder, random_trees(4, 2))):
        head.zero_grad()
        head(found.last_RLD[:, 0]).sum().backward()
        assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("depths", [(), (0, 2), (5,)])
def test_depths_outside_the_model_are_refused(depths):
    with pytest.raises(ValueError, match=r"must lie in 1\.\.4"):
        Decoder(make("llama"), depths)


def test_a_model_that_is_no_decoder_is_refused():
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(ValueError, match="no final norm found in BertModel"):
        Decoder(AutoModel.from_config(config), [1])
