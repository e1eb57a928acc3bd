"""A row of token trees as arrays: what the forward, the attention and the pooling read.

Legend: `T` tokens of a row, `S` its segments, `G` its trees (prompts), `R` its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoply.model.tree import TokenTree, grow
from panoply.types import Ints


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Trees side by side in one sequence, segment by segment, parents first."""

    tokens_T: Ints
    positions_T: Ints
    """Depth of each token in its tree."""
    bounds_S: Ints
    """Where each segment begins in the row, and at last the length of the row: S + 1 numbers."""
    parent_S: Ints
    """Number of the segment before each, -1 for a prompt."""
    gates_G: Ints
    """Place of each prompt's gate."""
    last_R: Ints
    """Place of the last token of each response's render."""
    own_R: tuple[Ints, ...]
    """Places of each response's own tokens."""
    completion_tokens_R: tuple[Ints, ...]
    """Places of the same and of the token that ends its turn, where the template has one."""

    @property
    def segment_T(self) -> Ints:
        """Number of each token's segment."""
        return np.repeat(np.arange(len(self.parent_S)), np.diff(self.bounds_S))

    @property
    def before_T(self) -> Ints:
        """Place of the token before each in its tree; -1 for the first of a prompt."""
        before = np.arange(-1, len(self.tokens_T) - 1)
        first_S, parent_S = self.bounds_S[:-1], self.parent_S
        before[first_S] = np.where(parent_S >= 0, self.bounds_S[parent_S + 1] - 1, -1)
        return before

    def path(self, segment: int) -> tuple[int, ...]:
        """Segments before `segment`, the prompt first."""
        found: list[int] = []
        while (segment := int(self.parent_S[segment])) >= 0:
            found.append(segment)
        return tuple(reversed(found))


def lay_out(trees: Sequence[TokenTree]) -> TreeLayout:
    """Lays trees out as arrays: token ids, positions by depth, and who belongs where."""
    tokens: list[int] = []
    positions: list[int] = []
    bounds, parents = [0], list[int]()
    gates: list[int] = []
    own: list[Ints] = []
    completion: list[Ints] = []
    last: list[int] = []
    for tree in trees:
        grown, offset = grow(tree), len(parents)
        gates.append(len(tokens) + tree.gate)
        ends: list[int] = []  # depth at the end of each segment of this tree
        for segment in grown.segments:
            depth = ends[segment.parent] if segment.parent >= 0 else 0
            ends.append(depth + len(segment.tokens))
            tokens += segment.tokens
            positions += range(depth, ends[-1])
            bounds.append(len(tokens))
            parents.append(offset + segment.parent if segment.parent >= 0 else -1)
        for branch, path in zip(tree.branches, grown.paths, strict=True):
            spans = [np.arange(bounds[offset + s], bounds[offset + s + 1]) for s in path]
            places = np.concatenate(spans)
            own.append(places[branch.start : branch.stop])
            completion.append(places[branch.start : branch.stop + 1])
            last.append(int(places[-1]))
    return TreeLayout(
        tokens_T=np.asarray(tokens, dtype=np.int64),
        positions_T=np.asarray(positions, dtype=np.int64),
        bounds_S=np.asarray(bounds, dtype=np.int64),
        parent_S=np.asarray(parents, dtype=np.int64),
        gates_G=np.asarray(gates, dtype=np.int64),
        last_R=np.asarray(last, dtype=np.int64),
        own_R=tuple(own),
        completion_tokens_R=tuple(completion),
    )


def ancestry(layout: TreeLayout) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Returns `[S, S]`: whether the column's segment is the row's, or before it on its path."""
    seen_SS = np.eye(len(layout.parent_S), dtype=np.bool_)
    for segment, parent in enumerate(layout.parent_S):
        if parent >= 0:
            seen_SS[segment] |= seen_SS[parent]
    return seen_SS
