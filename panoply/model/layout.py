"""A row of token trees as arrays, for the forward, the attention and the pooling.

Legend: `T` tokens of a row, `S` its segments, `G` its trees (prompts), `R` its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from panoply.model.tree import TokenTree, build_trie
from panoply.types import Bools, Ints


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Trees side by side in one sequence, segment by segment.

    The segments of a tree stand in preorder: each before what grows from it, and all of that before
    the next one beside it.
    """

    tokens_T: Ints
    positions_T: Ints
    """Depth of each token in its tree."""
    bounds_S: Ints
    """Start of each segment in the row, then the length of the row: S + 1 numbers."""
    parent_S: Ints
    """Number of the segment before each, -1 for a prompt."""
    gates_G: Ints
    """Index of each prompt's gate token in the row."""
    last_R: Ints
    """Index of the last token of each response's render."""
    response_tokens_R: tuple[Ints, ...]
    """Indices of each response's tokens, without the template's."""
    completion_tokens_R: tuple[Ints, ...]
    """Indices of each response's tokens and of the one that ends its turn, where the template has
    one: the loss mask of a policy."""

    @property
    def segment_T(self) -> Ints:
        """Number of each token's segment."""
        return np.repeat(np.arange(len(self.parent_S)), np.diff(self.bounds_S))

    @property
    def before_T(self) -> Ints:
        """Index of the token before each in its tree; -1 for the first of a prompt."""
        before = np.arange(-1, len(self.tokens_T) - 1)
        first_S, parent_S = self.bounds_S[:-1], self.parent_S
        before[first_S] = np.where(parent_S >= 0, self.bounds_S[parent_S + 1] - 1, -1)
        return before

    @property
    def ends_T(self) -> Ints:
        """Index behind the last token that sees each one: all that grows from its segment.

        Segments stand in preorder, so that what grows from one follows it without a gap.
        """
        ends_S = self.bounds_S[1:].copy()
        for segment in range(len(self.parent_S) - 1, -1, -1):
            parent = self.parent_S[segment]
            if parent >= 0:
                ends_S[parent] = max(ends_S[parent], ends_S[segment])
        return ends_S[self.segment_T]

    def path(self, segment: int) -> tuple[int, ...]:
        """Segments before `segment`, the prompt first."""
        ancestors: list[int] = []
        parent = int(self.parent_S[segment])
        while parent >= 0:
            ancestors.append(parent)
            parent = int(self.parent_S[parent])
        return tuple(reversed(ancestors))


def to_layout(trees: Sequence[TokenTree]) -> TreeLayout:
    """Lays trees out side by side, as token ids, positions by depth and indices."""
    tokens: list[int] = []
    positions: list[int] = []
    bounds: list[int] = [0]
    parents: list[int] = []
    gates: list[int] = []
    last: list[int] = []
    response_tokens: list[Ints] = []
    completion_tokens: list[Ints] = []
    for tree in trees:
        trie, offset = build_trie(tree), len(parents)
        gates.append(len(tokens) + tree.gate)
        ends: list[int] = []  # depth at the end of each segment of this tree
        for segment in trie.segments:
            depth = ends[segment.parent] if segment.parent >= 0 else 0
            ends.append(depth + len(segment.tokens))
            tokens += segment.tokens
            positions += range(depth, ends[-1])
            bounds.append(len(tokens))
            parents.append(offset + segment.parent if segment.parent >= 0 else -1)
        for branch, path in zip(tree.branches, trie.paths, strict=True):
            spans = [np.arange(bounds[offset + s], bounds[offset + s + 1]) for s in path]
            places = np.concatenate(spans)
            response_tokens.append(places[branch.start : branch.stop])
            completion_tokens.append(places[branch.start : branch.stop + 1])
            last.append(int(places[-1]))
    return TreeLayout(
        tokens_T=np.asarray(tokens, dtype=np.int64),
        positions_T=np.asarray(positions, dtype=np.int64),
        bounds_S=np.asarray(bounds, dtype=np.int64),
        parent_S=np.asarray(parents, dtype=np.int64),
        gates_G=np.asarray(gates, dtype=np.int64),
        last_R=np.asarray(last, dtype=np.int64),
        response_tokens_R=tuple(response_tokens),
        completion_tokens_R=tuple(completion_tokens),
    )


def pad_row(layout: TreeLayout, size: int) -> TreeLayout:
    """Pads a row to `size` tokens with one more tree, which no response belongs to."""
    num_tokens = len(layout.tokens_T)
    if num_tokens == size:
        return layout
    padding = np.arange(size - num_tokens)
    return replace(
        layout,
        tokens_T=np.concatenate([layout.tokens_T, np.zeros_like(padding)]),
        positions_T=np.concatenate([layout.positions_T, padding]),
        bounds_S=np.append(layout.bounds_S, size),
        parent_S=np.append(layout.parent_S, -1),
    )


def ancestry(layout: TreeLayout) -> Bools:
    """Returns `[S, S]`: whether the column's segment is the row's, or before it on its path."""
    seen_SS = np.eye(len(layout.parent_S), dtype=np.bool_)
    for segment, parent in enumerate(layout.parent_S):
        if parent >= 0:
            seen_SS[segment] |= seen_SS[parent]
    return seen_SS
