"""Token trees: packing loses nothing, positions are depths, a branch sees its ancestors only."""

import numpy as np
import pytest

from panoply.model.attention import make_plan
from panoply.model.layout import to_layout
from panoply.model.mask import tree_mask
from panoply.model.tree import WIDTHS, Branch, TokenTree, build_trie, first_fit, pack


def random_trees(seed, num_trees):
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return tuple(rng.integers(0, 97, size=rng.integers(low, high)).tolist())

    trees = []
    for _ in range(num_trees):
        shared, texts = tokens(3, 20), [tokens(2, 15) for _ in range(rng.integers(1, 6))]
        branches = tuple(Branch(text, len(text) // 3, len(text) - 1) for text in texts)
        trees.append(TokenTree(shared, branches, gate=len(shared) - 2))
    return trees


def alike_trees(seed, num_trees):
    """Trees whose responses share beginnings of every length, some with nothing behind them."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(num_trees):
        words = rng.integers(0, 97, size=(3, 24)).tolist()
        texts = []
        for _ in range(rng.integers(2, 8)):
            kept = words[rng.integers(3)][: rng.integers(1, 25)]
            texts.append(tuple(kept + rng.integers(0, 97, size=rng.integers(0, 9)).tolist()))
        branches = tuple(Branch(text, len(text) // 3, len(text)) for text in texts)
        shared = tuple(rng.integers(0, 97, size=rng.integers(3, 20)).tolist())
        trees.append(TokenTree(shared, branches, gate=len(shared) - 1))
    return trees


def origins(rows):
    return sorted((x.tree, x.branch) for row in rows for leaves in row.origins for x in leaves)


@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
def test_packing_keeps_every_branch_once_and_the_budget(budget):
    trees = random_trees(0, 20)
    rows = pack(trees, budget)
    assert origins(rows) == [(i, j) for i, t in enumerate(trees) for j in range(len(t.branches))]
    for row in rows:
        branches = sum(len(tree.branches) for tree in row.trees)
        assert row.num_tokens <= budget or len(row.trees) == 1
        assert row.num_tokens <= WIDTHS[-1] * budget or branches == 1


def test_a_packed_branch_keeps_its_prompt_and_its_tokens():
    trees = random_trees(1, 12)
    for row in pack(trees, 40):
        for tree, leaves in zip(row.trees, row.origins, strict=True):
            for branch, leaf in zip(tree.branches, leaves, strict=True):
                assert branch == trees[leaf.tree].branches[leaf.branch]
                assert (tree.shared, tree.gate) == (
                    trees[leaf.tree].shared,
                    trees[leaf.tree].gate,
                )


def distinct(sizes, first=0):
    """Branches that have nothing in common."""
    starts = np.cumsum([first, *sizes]).tolist()
    return tuple(Branch(tuple(range(a, a + n)), 0, n) for a, n in zip(starts, sizes, strict=False))


def test_a_tree_above_the_budget_is_split_only_where_the_repeated_prompt_costs_little():
    short = TokenTree(tuple(range(2)), distinct([10] * 5), gate=0)
    assert sorted(row.num_tokens for row in pack([short], 32)) == [22, 32]
    long = TokenTree(tuple(range(20)), distinct([10] * 5), gate=0)
    assert [row.num_tokens for row in pack([long], 70)] == [70]
    assert [row.num_tokens for row in pack([long], 40)] == [70]
    assert [row.num_tokens for row in pack([long], 10)] == [70]  # a wide row costs less than that
    # Beyond 16 budgets it is split whatever that costs, into parts as large as that.
    assert sorted(row.num_tokens for row in pack([long], 4)) == [30, 60]


def test_a_branch_above_the_budget_gets_a_row_of_its_own():
    short, other, long = distinct([2, 2, 90])
    tree = TokenTree((1, 2, 3), (short, long, other), gate=0)
    rows = pack([tree], 20)
    assert origins(rows) == [(0, 0), (0, 1), (0, 2)]
    assert [row.num_tokens for row in rows if row.num_tokens > 20] == [93]


def test_bins_keep_their_size_and_lose_nothing():
    sizes = np.random.default_rng(0).integers(1, 60, size=200).tolist()
    bins = first_fit(sizes, 50)
    assert sorted(i for chosen in bins for i in chosen) == list(range(200))
    assert all(sum(sizes[i] for i in c) <= 50 or len(c) == 1 for c in bins)


def test_small_trees_share_a_row():
    rows = pack([TokenTree((1, 2), (Branch((3,), 0, 1),), gate=0)] * 10, 30)
    assert [len(row.trees) for row in rows] == [10]


def test_a_pair_costs_its_prompt_once():
    prompt, response = 100, 50
    tree = TokenTree(tuple(range(prompt)), distinct([response] * 2), gate=0)
    assert tree.num_tokens == prompt + 2 * response
    assert tree.num_separate_tokens == 2 * (prompt + response)
    assert [row.num_tokens for row in pack([tree], 1024)] == [prompt + 2 * response]


def test_positions_are_depths_and_spans_point_at_the_tokens():
    first = TokenTree((5, 6, 7), (Branch((1, 2, 8), 1, 2), Branch((3,), 0, 1)), gate=1)
    second = TokenTree((9, 4), (Branch((2, 8), 0, 1),), gate=0)
    layout = to_layout([first, second])
    assert layout.tokens_T.tolist() == [5, 6, 7, 1, 2, 8, 3, 9, 4, 2, 8]
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 3, 0, 1, 2, 3]
    assert layout.segment_T.tolist() == [0] * 3 + [1] * 3 + [2] + [3] * 2 + [4] * 2
    assert layout.parent_S.tolist() == [-1, 0, 0, -1, 3]
    assert [places.tolist() for places in layout.response_tokens_R] == [[4], [6], [9]]
    assert layout.last_R.tolist() == [5, 6, 10]
    assert layout.gates_G.tolist() == [1, 7]


def test_responses_share_what_their_beginnings_have_in_common():
    texts = ((1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7), (1, 2, 3, 4), (1, 2, 9), (1, 2, 3, 4, 5))
    tree = TokenTree((8, 8), tuple(Branch(t, 0, len(t)) for t in texts), gate=0)
    grown = build_trie(tree)
    assert [(s.tokens, s.parent) for s in grown.segments] == [
        ((8, 8), -1),
        ((1, 2, 3, 4), 0),
        ((5,), 1),
        ((6, 7), 1),
        ((5,), 1),
        ((1, 2, 9), 0),
    ]
    assert tree.num_tokens == 13
    assert tree.num_separate_tokens == 5 * 2 + 23


def test_every_response_is_spelled_by_the_places_on_its_path():
    for tree in alike_trees(0, 30):
        layout, grown = to_layout([tree]), build_trie(tree)
        for branch, path in zip(tree.branches, grown.paths, strict=True):
            spelled = [t for s in path for t in grown.segments[s].tokens]
            assert tuple(spelled) == branch.tokens
        own = [layout.tokens_T[places].tolist() for places in layout.response_tokens_R]
        assert own == [list(b.tokens[b.start : b.stop]) for b in tree.branches]
        assert layout.tokens_T[layout.last_R].tolist() == [b.tokens[-1] for b in tree.branches]


def test_every_segment_runs_in_one_call_behind_its_own_path():
    layout = to_layout(alike_trees(1, 8))
    plan = make_plan(layout)
    assert sorted(s for call in plan.calls for s in call.segments) == list(range(len(plan.sizes)))
    assert all(call.path == layout.path(s) for call in plan.calls for s in call.segments)


def test_the_attention_of_small_trees_does_not_grow_with_the_row():
    trees = random_trees(5, 40)
    alone = sum(make_plan(to_layout([tree])).num_scores for tree in trees)
    assert make_plan(to_layout(trees)).num_scores == alone
    assert alone < sum(tree.num_tokens for tree in trees) ** 2 / 20


def test_a_token_sees_the_tokens_on_its_path_to_the_root_and_itself_only():
    trees = [*random_trees(3, 3), *alike_trees(3, 3)]
    layout = to_layout(trees)
    mask = tree_mask(layout)
    # Tokens by their path's text: what a token sees must spell its own beginning, in its tree.
    for q in range(len(layout.tokens_T)):
        seen = mask[q].nonzero()[:, 0].numpy()
        assert seen[-1] == q
        assert layout.positions_T[seen].tolist() == list(range(layout.positions_T[q] + 1))
    for r, (tree, branch) in enumerate((t, b) for t in trees for b in t.branches):
        seen = mask[layout.last_R[r]].nonzero()[:, 0].numpy()
        assert tuple(layout.tokens_T[seen].tolist()) == tree.shared + branch.tokens


def test_tokens_and_padding_of_a_fixed_workload_do_not_grow():
    """The cost of trees as numbers that no machine moves: a slower packing fails here."""
    rng = np.random.default_rng(0)
    trees = []
    for _ in range(64):
        prompt, *sizes = rng.integers((20, 10, 10), (200, 150, 150)).tolist()
        trees.append(TokenTree(tuple(range(prompt)), distinct(sizes, first=1000), gate=0))
    separate = sum(tree.num_separate_tokens for tree in trees)
    rows = pack(trees, 512)
    computed = sum(row.num_tokens for row in rows)
    assert computed == sum(tree.num_tokens for tree in trees)
    assert separate / computed > 1.4
    assert computed / (512 * len(rows)) > 0.8
    plans = [make_plan(to_layout(row.trees)) for row in rows]
    useful = sum(
        len(tree.shared) ** 2
        + sum(len(b.tokens) * (len(b.tokens) + len(tree.shared)) for b in tree.branches)
        for tree in trees
    )
    assert sum(plan.num_scores for plan in plans) < 1.2 * useful


def test_sixteen_samples_of_a_long_prompt_cost_a_sixth_of_separate_sequences():
    tree = TokenTree(tuple(range(512)), distinct([64] * 16, first=1000), gate=0)
    (row,) = pack([tree], 1024)
    assert tree.num_separate_tokens / row.num_tokens == 6.0
    plan = make_plan(to_layout(row.trees))
    assert len(plan.calls) == 2
    assert plan.num_scores == 512**2 + 16 * 64 * 576


def test_a_tree_that_cannot_be_computed_is_refused():
    branch = Branch((1,), 0, 1)
    with pytest.raises(ValueError, match="at least one response token"):
        Branch((1, 2), 2, 2)
    with pytest.raises(ValueError, match="gate position 2"):
        TokenTree((1, 2), (branch,), gate=2)
    with pytest.raises(ValueError, match="at least one branch"):
        TokenTree((1, 2), (), gate=0)
    with pytest.raises(ValueError, match="positive, got 0"):
        pack([TokenTree((1, 2), (branch,), gate=0)], 0)
