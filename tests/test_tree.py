"""Token trees: packing loses nothing, positions are depths, a branch sees its ancestors only."""

import numpy as np
import pytest

from panoply.model.forward import tree_mask
from panoply.model.tree import Branch, TokenTree, lay_out, pack


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


def origins(rows):
    return sorted((x.tree, x.branch) for row in rows for leaves in row.leaves for x in leaves)


@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
def test_packing_keeps_every_branch_once_and_the_budget(budget):
    trees = random_trees(0, 20)
    rows = pack(trees, budget)
    assert origins(rows) == [(i, j) for i, t in enumerate(trees) for j in range(len(t.branches))]
    for row in rows:
        alone = len(row.trees) == 1 and len(row.trees[0].branches) == 1
        assert row.num_tokens <= budget or alone


def test_a_packed_branch_keeps_its_prompt_and_its_tokens():
    trees = random_trees(1, 12)
    for row in pack(trees, 40):
        for tree, leaves in zip(row.trees, row.leaves, strict=True):
            for branch, leaf in zip(tree.branches, leaves, strict=True):
                assert branch == trees[leaf.tree].branches[leaf.branch]
                assert (tree.shared, tree.gate) == (
                    trees[leaf.tree].shared,
                    trees[leaf.tree].gate,
                )


def test_a_tree_above_the_budget_is_split_and_one_that_fits_is_not():
    branch = Branch(tuple(range(10)), 0, 10)
    tree = TokenTree(tuple(range(20)), (branch,) * 5, gate=0)
    assert [row.num_tokens for row in pack([tree], 70)] == [70]
    assert sorted(row.num_tokens for row in pack([tree], 40)) == [30, 40, 40]


def test_a_branch_above_the_budget_gets_a_row_of_its_own():
    short, long = Branch((1, 2), 0, 2), Branch(tuple(range(50)), 0, 50)
    tree = TokenTree((1, 2, 3), (short, long, short), gate=0)
    rows = pack([tree], 20)
    assert origins(rows) == [(0, 0), (0, 1), (0, 2)]
    assert [row.num_tokens for row in rows if row.num_tokens > 20] == [53]


def test_small_trees_share_a_row():
    rows = pack([TokenTree((1, 2), (Branch((3,), 0, 1),), gate=0)] * 10, 30)
    assert [len(row.trees) for row in rows] == [10]


def test_a_pair_costs_its_prompt_once():
    prompt, response = 100, 50
    branch = Branch(tuple(range(response)), 0, response)
    tree = TokenTree(tuple(range(prompt)), (branch, branch), gate=0)
    assert tree.num_tokens == prompt + 2 * response
    assert tree.num_separate_tokens == 2 * (prompt + response)
    assert [row.num_tokens for row in pack([tree], 1024)] == [prompt + 2 * response]


def test_positions_are_depths_and_spans_point_at_the_tokens():
    first = TokenTree((5, 6, 7), (Branch((1, 2, 8), 1, 2), Branch((3,), 0, 1)), gate=1)
    second = TokenTree((9, 4), (Branch((2, 8), 0, 1),), gate=0)
    layout = lay_out(pack([first, second], 100)[0])
    assert layout.tokens_T.tolist() == [5, 6, 7, 1, 2, 8, 3, 9, 4, 2, 8]
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 3, 0, 1, 2, 3]
    assert layout.tree_T.tolist() == [0] * 7 + [1] * 4
    assert layout.branch_T.tolist() == [-1, -1, -1, 0, 0, 0, 1, -1, -1, 2, 2]
    assert layout.spans_R3.tolist() == [[4, 5, 5], [6, 7, 6], [9, 10, 10]]
    assert layout.gates_G.tolist() == [1, 7]


def test_a_token_sees_the_tokens_on_its_path_to_the_root_and_itself_only():
    row = pack(random_trees(3, 6), budget=200)[0]
    # Paths in plain Python: every branch's tokens behind the shared ones, as places in the row.
    paths, place = [], 0
    for tree in row.trees:
        shared = list(range(place, place + len(tree.shared)))
        place += len(shared)
        for branch in tree.branches:
            paths.append(shared + list(range(place, place + len(branch.tokens))))
            place += len(branch.tokens)
    seen = {q: set(path[: i + 1]) for path in paths for i, q in enumerate(path)}
    mask = tree_mask(lay_out(row))
    assert len(row.trees) > 1
    for q in range(place):
        assert set(mask[q].nonzero()[:, 0].tolist()) == seen[q]


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
