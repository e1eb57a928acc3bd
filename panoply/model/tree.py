"""Token trees: one prompt and its responses, so that what they share is computed once.

    prompt tokens ──┬── response 0
                    ├── response 1
                    └── response 2

A pair costs P + 2R tokens instead of 2(P + R). Many trees are packed into one row under a token
budget; a token sees its own tree's prompt and its own branch only, and its position is its depth
in the tree, so every response gets the features that it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Branch:
    """The tokens of one response after the tokens that its tree shares."""

    tokens: tuple[int, ...]
    start: int
    """Index in `tokens` of the response's first own token (before it: the template's)."""
    stop: int
    """Index after the response's last own token (after it: the template's closing tokens)."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.tokens):
            raise ValueError(
                f"a branch needs at least one response token: start={self.start!r}, "
                f"stop={self.stop!r} in {len(self.tokens)} tokens"
            )


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One prompt and its responses."""

    shared: tuple[int, ...]
    """Longest common prefix of the rendered token ids, at most up to the first response token."""
    branches: tuple[Branch, ...]
    gate: int
    """Index in `shared` of the token whose hidden state conditions the gate."""

    def __post_init__(self) -> None:
        if not 0 <= self.gate < len(self.shared):
            raise ValueError(f"gate position {self.gate!r} is outside {len(self.shared)} tokens")
        if not self.branches:
            raise ValueError("a token tree needs at least one branch, got none")

    @property
    def num_tokens(self) -> int:
        """Tokens that one forward computes for this tree."""
        return len(self.shared) + sum(len(branch.tokens) for branch in self.branches)

    @property
    def num_separate_tokens(self) -> int:
        """Tokens that the same responses cost as separate sequences."""
        return sum(len(self.shared) + len(branch.tokens) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a branch came from, after trees were split: response `branch` of tree `tree`."""

    tree: int
    branch: int


@dataclass(frozen=True, slots=True)
class Row:
    """Trees that are computed side by side in one sequence."""

    trees: tuple[TokenTree, ...]
    leaves: tuple[tuple[Leaf, ...], ...]
    """For each tree of the row, the origin of its branches."""

    @property
    def num_tokens(self) -> int:
        """Length of the row."""
        return sum(tree.num_tokens for tree in self.trees)


def pack(trees: Sequence[TokenTree], budget: int) -> list[Row]:
    """Packs trees into rows of at most `budget` tokens, first fit by decreasing size.

    A tree above the budget is split into trees with the same prompt and fewer branches; a single
    branch above it gets a row of its own. Every branch appears in exactly one row.

    Raises:
        ValueError: the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"the token budget must be positive, got {budget!r}")
    pieces = [piece for index, tree in enumerate(trees) for piece in _split(index, tree, budget)]
    pieces.sort(key=lambda piece: (-piece[0].num_tokens, piece[1][0].tree, piece[1][0].branch))
    rows: list[list[tuple[TokenTree, tuple[Leaf, ...]]]] = []
    room: list[int] = []
    for piece in pieces:
        size = piece[0].num_tokens
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            rows.append([piece])
            room.append(budget - size)
        else:
            rows[place].append(piece)
            room[place] -= size
    return [Row(tuple(t for t, _ in row), tuple(leaves for _, leaves in row)) for row in rows]


def _split(
    index: int, tree: TokenTree, budget: int
) -> Iterable[tuple[TokenTree, tuple[Leaf, ...]]]:
    """Yields parts of a tree that fit the budget, each with at least one branch."""
    part: list[int] = []
    size = len(tree.shared)
    for i, branch in enumerate(tree.branches):
        if part and size + len(branch.tokens) > budget:
            yield _part(index, tree, part)
            part, size = [], len(tree.shared)
        part.append(i)
        size += len(branch.tokens)
    yield _part(index, tree, part)


def _part(index: int, tree: TokenTree, chosen: list[int]) -> tuple[TokenTree, tuple[Leaf, ...]]:
    branches = tuple(tree.branches[i] for i in chosen)
    return replace(tree, branches=branches), tuple(Leaf(index, i) for i in chosen)


@dataclass(frozen=True, slots=True)
class Layout:
    """A row as arrays, `T` its length, `R` its branches, `G` its trees."""

    tokens_T: Ints
    positions_T: Ints
    tree_T: Ints
    """Number of the token's tree in the row."""
    branch_T: Ints
    """Number of the token's branch in the row, -1 for shared tokens."""
    spans_R3: Ints
    """Per branch: first response token, end of the response, last token of the render."""
    gates_G: Ints


def lay_out(row: Row) -> Layout:
    """Lays a row out as arrays: token ids, positions by depth, and who belongs where."""
    tokens: list[int] = []
    positions: list[int] = []
    tree_of: list[int] = []
    branch_of: list[int] = []
    spans: list[tuple[int, int, int]] = []
    gates: list[int] = []
    for number, tree in enumerate(row.trees):
        depth = len(tree.shared)
        gates.append(len(tokens) + tree.gate)
        tokens += tree.shared
        positions += range(depth)
        branch_of += [-1] * depth
        for branch in tree.branches:
            offset, size = len(tokens), len(branch.tokens)
            branch_of += [len(spans)] * size
            spans.append((offset + branch.start, offset + branch.stop, offset + size - 1))
            tokens += branch.tokens
            positions += range(depth, depth + size)
        tree_of += [number] * tree.num_tokens
    return Layout(
        tokens_T=np.asarray(tokens, dtype=np.int64),
        positions_T=np.asarray(positions, dtype=np.int64),
        tree_T=np.asarray(tree_of, dtype=np.int64),
        branch_T=np.asarray(branch_of, dtype=np.int64),
        spans_R3=np.asarray(spans, dtype=np.int64),
        gates_G=np.asarray(gates, dtype=np.int64),
    )
