"""One FlexAttention call sees what the calls for each family of siblings see."""

from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from panoply.hub.backbone.attention import attend_by_trees
from panoply.model import flex
from panoply.model.attention import make_plan, tree_attention
from panoply.model.decoder import Decoder
from panoply.model.flex import (
    BLOCK,
    LEAST_ROW,
    KernelError,
    choose_kernel,
    compiled,
    flex_tree_attention,
    make_flex_plan,
    pad_flex_row,
    takes_flex,
)
from panoply.model.forward import encode, encode_plain, row_states
from panoply.model.layout import pad_row, to_layout
from panoply.model.tree import Branch, TokenTree
from tests.builders.token_trees import alike_trees, make, random_trees, relative

CPU = torch.device("cpu")
NAMES = ("gate_GLD", "last_RLD", "mean_RLD")
WIDE = {"head_dim": 16}
"""A size of a head that the kernel takes; the small models have 8."""
TINY = [
    TokenTree((1,), (Branch((2,), 0, 1), Branch((3,), 0, 1)), gate=0),
    TokenTree((4,), (Branch((5, 6, 7, 8), 0, 4), Branch((5, 6, 7, 8, 9), 0, 5)), gate=0),
]
"""Trees with segments of one token, and with one that ends inside of another."""


def deep_trees(seed, num_trees=3):
    """Trees whose responses share beginnings of many lengths, so that segments are nested."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(num_trees):
        texts = [tuple(rng.integers(0, 97, size=rng.integers(8, 30)).tolist())]
        for _ in range(rng.integers(1, 12)):
            kept = texts[rng.integers(len(texts))]
            kept = kept[: rng.integers(1, len(kept) + 1)]
            texts.append((*kept, *rng.integers(0, 97, size=rng.integers(0, 25)).tolist()))
        shared = tuple(rng.integers(0, 97, size=rng.integers(1, 60)).tolist())
        branches = tuple(Branch(text, 0, len(text)) for text in texts)
        trees.append(TokenTree(shared, branches, gate=0))
    return trees


def all_trees(seed):
    return [*deep_trees(seed), *TINY, *random_trees(seed, 3), *alike_trees(seed, 2)]


def states(layout, *, heads=4, key_heads=2, size=16, dtype=torch.float64, seed=0):
    """Queries, keys and values of a row."""
    torch.manual_seed(seed)
    shape = (1, heads, len(layout.tokens_T), size)
    keys = (1, key_heads, *shape[2:])
    return [torch.randn(s, dtype=dtype) for s in (shape, keys, keys)]


def difference(layout, options, **sizes):
    """Largest difference between the kernel on a padded row and the calls on the row itself."""
    padded, num_tokens = pad_flex_row(layout), len(layout.tokens_T)
    rows = states(padded, **sizes)
    wanted = tree_attention(*(x[:, :, :num_tokens] for x in rows), make_plan(layout), **options)
    found = flex_tree_attention(*rows, make_flex_plan(padded, CPU), **options)
    assert found.isfinite().all()
    return float((found[:, :num_tokens] - wanted).abs().max())


def brute_force(layout, window):
    """What each token sees, token by token from the path of its segment."""
    segments = layout.segment_T.tolist()
    seen = np.zeros((len(segments), len(segments)), np.bool_)
    for q, segment in enumerate(segments):
        path = {*layout.path(segment), segment}
        for k in range(q + 1):
            near = window is None or layout.positions_T[q] - layout.positions_T[k] < window
            seen[q, k] = segments[k] in path and near
    return seen


def as_matrix(mask):
    """What a block mask lets through: all of a whole block, the rule's choice of a partial one."""
    num_tokens = mask.shape[-1]
    place = torch.arange(num_tokens)
    rule = mask.mask_mod(None, None, place[:, None], place[None])
    seen = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    computed = 0
    for counts, numbers, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for i, count in enumerate(counts[0, 0].tolist()):
            for j in numbers[0, 0, i, :count].tolist():
                rows, columns = (slice(n * BLOCK, (n + 1) * BLOCK) for n in (i, j))
                assert not seen[rows, columns].any()  # a block is listed once
                seen[rows, columns] = True if whole else rule[rows, columns]
                computed += 1
    return seen.numpy(), computed


@pytest.mark.parametrize("window", [None, 6, 150])
@pytest.mark.parametrize("seed", range(3))
def test_a_block_mask_lets_through_what_a_path_in_plain_python_does(seed, window):
    prompt = tuple(range(300))  # longer than two blocks, so that some are seen throughout
    long = TokenTree(prompt, tuple(Branch((i,) * 90, 0, 90) for i in range(4)), gate=0)
    layout = pad_flex_row(to_layout([*deep_trees(seed), long, *all_trees(seed)]))
    wanted = brute_force(layout, window)
    found, computed = as_matrix(make_flex_plan(layout, CPU).mask(window))
    assert (found == wanted).all()
    blocks = wanted.reshape(len(wanted) // BLOCK, BLOCK, -1, BLOCK).any((1, 3))
    if window is None:
        assert computed == blocks.sum() < blocks.size / 2
    else:
        assert blocks.sum() <= computed <= np.tril(np.ones_like(blocks)).sum()


def test_blocks_that_are_seen_throughout_are_computed_without_the_rule():
    layout = pad_flex_row(to_layout([TokenTree(tuple(range(511)), (Branch((1,), 0, 1),), gate=0)]))
    mask = make_flex_plan(layout, CPU).mask(None)
    assert mask.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3]
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1]
    near = make_flex_plan(layout, CPU).mask(100)
    assert near.full_kv_num_blocks[0, 0].tolist() == [0, 0, 0, 0]
    assert near.kv_num_blocks[0, 0].tolist() == [1, 2, 2, 2]


def test_segments_stand_in_preorder_and_end_behind_all_that_grows_from_them():
    for seed in range(20):
        layout = to_layout(all_trees(seed))
        segments = layout.segment_T
        for segment in range(len(layout.parent_S)):
            below = [
                s for s in range(len(layout.parent_S)) if s == segment or segment in layout.path(s)
            ]
            assert below == list(range(segment, segment + len(below)))
            ends = layout.ends_T[segments == segment]
            assert (ends == layout.bounds_S[below[-1] + 1]).all()


@pytest.mark.parametrize(("num_tokens", "size"), [(2, 256), (255, 256), (256, 256), (257, 384)])
def test_a_row_is_padded_to_whole_blocks_by_a_tree_of_its_own(num_tokens, size):
    tree = TokenTree(tuple(range(num_tokens - 1)), (Branch((1,), 0, 1),), gate=0)
    layout = to_layout([tree])
    padded = pad_flex_row(layout)
    assert size >= LEAST_ROW
    assert len(padded.tokens_T) == len(padded.positions_T) == padded.bounds_S[-1] == size
    assert padded.tokens_T[:num_tokens].tolist() == layout.tokens_T.tolist()
    assert padded.parent_S[len(layout.parent_S) :].tolist() == [-1] * (size > num_tokens)
    assert padded.last_R.tolist() == [num_tokens - 1]
    assert pad_row(layout, num_tokens) is layout


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (4, 1)]),
    window=st.sampled_from([None, 1, 5, 40, 1000]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.7]),
    exact=st.booleans(),
)
def test_one_call_gives_the_attention_of_several(seed, heads, window, softcap, scale, exact):
    options = {"window": window, "softcap": softcap, "scale": scale}
    sizes = {"heads": heads[0], "key_heads": heads[1], "seed": seed}
    dtype = torch.float64 if exact else torch.float32
    layout = to_layout(all_trees(seed))
    # With a cap, several calls take the softmax in float32.
    bound = 1e-12 if exact and softcap is None else 1e-5
    assert difference(layout, options, dtype=dtype, **sizes) < bound


def sees_all_before(*states_and_rule):
    """The kernel with a fault: a token sees every one before it, whatever its path."""
    query, key, value, score_mod, mask, scale = states_and_rule
    faulty = deepcopy(mask)
    faulty.mask_mod = lambda _batch, _head, q, k: k <= q
    return flex_attention(
        query, key, value, score_mod, faulty, scale=scale, enable_gqa=query.shape[1] > key.shape[1]
    )


def test_a_wrong_test_of_ancestors_is_noticed_here_and_where_a_model_is_loaded(monkeypatch):
    assert difference(to_layout(all_trees(0)), {}) < 1e-12
    monkeypatch.setattr(flex, "_one_call", sees_all_before)
    assert difference(to_layout(all_trees(0)), {}) > 0.1
    monkeypatch.setenv(flex.VARIABLE, "flex")
    with pytest.raises(KernelError, match=r"other features on cpu .* PANOPLY_ATTENTION=calls"):
        attend_by_trees(Decoder(make("llama", **WIDE), [4]))


@pytest.mark.parametrize(("window", "softcap"), [*product([None, 9], [None, 2.0])])
def test_gradients_through_mask_and_cap_are_those_of_several_calls(window, softcap):
    # The public function refuses gradients on a CPU; the operator below it has them.
    def operator(query, key, value, score_mod, mask, scale):
        rule = score_mod or (lambda score, *_place: score)
        options = {"BACKEND": "AUTO", "OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False}
        return torch.ops.higher_order.flex_attention(
            query, key, value, rule, mask.as_tuple(), scale, options
        )[0]

    layout = pad_flex_row(to_layout(all_trees(1)))
    rows = [x.requires_grad_() for x in states(layout)]
    options = {"window": window, "softcap": softcap, "scale": 0.5}
    upstream = torch.randn(1, len(layout.tokens_T), 4, 16, dtype=torch.float64)
    found = flex_tree_attention(*rows, make_flex_plan(layout, CPU, operator), **options)
    wanted = tree_attention(*rows, make_plan(layout), **options)
    pairs = zip(
        torch.autograd.grad(found, rows, upstream),
        torch.autograd.grad(wanted, rows, upstream),
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gemma3_text"])
def test_a_whole_model_gives_the_features_of_separate_sequences(family, monkeypatch):
    trees = all_trees(2)
    monkeypatch.setenv(flex.VARIABLE, "flex")
    decoder = Decoder(make(family, **WIDE), [2, 4])
    plain = encode_plain(decoder, trees, batch_size=1)
    assert attend_by_trees(decoder)
    assert decoder.kernel == "flex"
    for budget in (60, 10_000):
        found = encode(decoder, trees, budget=budget)
        for name in NAMES:
            assert relative(getattr(found, name), getattr(plain, name)) < 1e-4
    top_TD, layout = row_states(decoder, trees)
    assert len(top_TD) == len(layout.tokens_T)
    assert relative(top_TD[torch.from_numpy(layout.last_R)], plain.last_RLD[:, -1]) < 1e-4


def test_rows_of_given_inputs_are_padded_as_those_of_tokens(monkeypatch):
    trees = random_trees(3)
    monkeypatch.setenv(flex.VARIABLE, "flex")
    decoder = Decoder(make("llama", **WIDE), [4])
    assert attend_by_trees(decoder)
    embed = decoder.model.get_input_embeddings()
    inputs = [embed(torch.from_numpy(to_layout([tree]).tokens_T)) for tree in trees]
    with torch.no_grad():
        assert torch.equal(row_states(decoder, trees, inputs)[0], row_states(decoder, trees)[0])


def test_autocast_settles_the_type_before_the_kernel():
    layout = pad_flex_row(to_layout(random_trees(4)))
    query, key, value = states(layout, dtype=torch.float32)
    exact = flex_tree_attention(query, key, value, make_flex_plan(layout, CPU))
    types = []

    def attend(*arguments):
        types.append([x.dtype for x in arguments[:3]])
        return flex._one_call(*arguments)

    with torch.autocast("cpu", torch.bfloat16):
        rough = flex_tree_attention(
            query, key, value.bfloat16(), make_flex_plan(layout, CPU, attend)
        )
    assert types == [[torch.bfloat16] * 3]
    assert rough.dtype == torch.bfloat16
    assert 1e-4 < relative(rough.float().flatten(2), exact.flatten(2)) < 0.05


def test_layers_that_the_kernel_does_not_take_run_in_several_calls(monkeypatch):
    layout = pad_flex_row(to_layout(random_trees(5)))
    for size, dropout, dtype, takes in (
        (16, 0.0, torch.float32, True),
        (256, 0.0, torch.bfloat16, True),
        (8, 0.0, torch.float32, False),
        (320, 0.0, torch.float32, False),
        (16, 0.1, torch.float32, False),
        (16, 0.0, torch.float64, False),
    ):
        query, _, value = states(layout, size=size, dtype=dtype)
        assert takes_flex(query, value, dropout) == takes
    trees = random_trees(5)
    several = Decoder(make("llama"), [4])
    assert attend_by_trees(several)
    monkeypatch.setenv(flex.VARIABLE, "flex")
    small = Decoder(make("llama"), [4])  # heads of 8
    assert attend_by_trees(small)
    assert (several.kernel, small.kernel) == ("calls", "flex")
    assert relative(encode(small, trees).last_RLD, encode(several, trees).last_RLD) < 1e-5


@pytest.mark.slow
def test_rows_of_all_lengths_are_compiled_twice_for_each_kind_of_layer():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    attend = compiled(counter)
    kinds = [{}, {"window": 40}, {"softcap": 2.0}, {"window": 90, "softcap": 3.0}, {"scale": 0.3}]
    trees = deep_trees(6, 8)
    counts = []
    for options in kinds:
        for num_trees in (1, 8, 3, 5, 2):
            layout = pad_flex_row(to_layout(trees[:num_trees]))
            rows = states(layout, dtype=torch.float32)
            with torch.no_grad():
                found = flex_tree_attention(*rows, make_flex_plan(layout, CPU, attend), **options)
            wanted = tree_attention(*rows, make_plan(layout), **options)
            assert (found - wanted).abs().max() < 1e-5
        counts.append(counter.frame_count)
    assert counts[0] == 2  # the first length, and all others
    assert all(1 <= more <= 2 for more in np.diff(counts))


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_an_error_with_the_way_out():
    torch._dynamo.reset()  # which counts compilations over all tests of a process

    def broken(_graph, _inputs):
        raise OSError("Failed to find C compiler")

    layout = pad_flex_row(to_layout(random_trees(7)))
    plan = make_flex_plan(layout, CPU, compiled(broken))
    with pytest.raises(
        KernelError, match=r"compile on cpu .*Failed to find C compiler.*_ATTENTION=calls"
    ):
        flex_tree_attention(*states(layout, dtype=torch.float32), plan)
    assert not issubclass(KernelError, RuntimeError | ValueError)


@pytest.mark.slow
def test_a_compilation_beyond_the_limit_is_an_error_and_no_slow_path():
    torch._dynamo.reset()  # which counts compilations over all tests of a process
    layout = pad_flex_row(to_layout(random_trees(7)))
    plan, rows = make_flex_plan(layout, CPU, compiled("eager")), states(layout, dtype=torch.float32)
    flex_tree_attention(*rows, plan)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(KernelError, match=r"not compile on cpu .*: Dynamo recompile limit exceeded"),
    ):
        flex_tree_attention(*rows, plan, softcap=2.0)


def test_the_device_chooses_the_kernel_unless_the_environment_does(monkeypatch):
    monkeypatch.delenv(flex.VARIABLE, raising=False)
    assert [choose_kernel(torch.device(kind)) for kind in ("cpu", "cuda")] == ["calls", "flex"]
    monkeypatch.setenv(flex.VARIABLE, "calls")
    assert choose_kernel(torch.device("cuda")) == "calls"
    monkeypatch.setenv(flex.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"PANOPLY_ATTENTION='fast' names no attention: .*'flex'"):
        choose_kernel(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("window", "softcap"), [*product([None, 40], [None, 2.0])])
@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_the_compiled_kernel_gives_outputs_and_gradients_of_several_calls(window, softcap, size):
    layout = pad_flex_row(to_layout(all_trees(8)))
    rows = [x.cuda().requires_grad_() for x in states(layout, size=size, dtype=torch.float32)]
    options = {"window": window, "softcap": softcap}
    found = flex_tree_attention(*rows, make_flex_plan(layout, rows[0].device), **options)
    wanted = tree_attention(*rows, make_plan(layout), **options)
    assert (found - wanted).abs().max() < 1e-4
    upstream = torch.randn_like(found)
    ours = torch.autograd.grad(found, rows, upstream)
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, rows, upstream), strict=True):
        assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()
