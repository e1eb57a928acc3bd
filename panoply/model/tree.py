"""Token trees: one prompt and its responses, so that what they share is computed once.

    prompt tokens ──┬── response 0
                    ├── response 1
                    └── response 2

A pair costs P + 2R tokens instead of 2(P + R). Responses that begin alike share that beginning too.
Many trees are packed into one row under a token budget; a token sees its own path to the root only,
and its position is its depth in the tree, so every response gets the features it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from operator import ne

MIN_SHARED = 4
"""Fewest common tokens for which responses share a segment. By estimate, not by measurement: one
more attention call per layer costs about as much as the linear layers of one or two tokens."""

WIDENING = 0.05
"""Relative extra cost of a token in a row four times as wide, at most (float32, one thread, rows of
256 to 1024 tokens of SmolLM2-135M): less than most repeated prompts cost."""

WIDTHS = (1, 4, 16)
"""Widths of the parts of a split tree, in budgets. Up to the last width, a tree stays whole where
that is cheaper than splitting it."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The tokens of one response after the tokens that its tree shares."""

    tokens: tuple[int, ...]
    start: int
    """Index in `tokens` of the response's first token; the template's tokens stand before it."""
    stop: int
    """Index after the response's last token; the template's closing tokens stand after it."""

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
        return sum(len(segment.tokens) for segment in build_trie(self).segments)

    @property
    def num_separate_tokens(self) -> int:
        """Tokens that the same responses cost as separate sequences."""
        return sum(len(self.shared) + len(branch.tokens) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that are computed once for all responses that have them and the same history."""

    tokens: tuple[int, ...]
    parent: int
    """Number of the segment before it, -1 for the prompt."""


@dataclass(frozen=True, slots=True)
class Trie:
    """A tree as segments, parents first."""

    segments: list[Segment]
    paths: list[list[int]]
    """Numbers of the segments after the prompt, for each branch."""


def build_trie(tree: TokenTree) -> Trie:
    """Returns the trie of a tree's responses, with no segment shared for under `MIN_SHARED`."""
    trie = Trie([Segment(tree.shared, -1)], [[] for _ in tree.branches])
    tokens = [branch.tokens for branch in tree.branches]
    _add_children(trie, tokens, 0, list(range(len(tokens))), 0)
    return trie


def _add_children(
    trie: Trie, tokens: list[tuple[int, ...]], parent: int, members: list[int], depth: int
) -> None:
    """Adds the segments below `parent` of the branches `members`, equal in `depth` tokens."""
    for group in _group_by_start(tokens, members, depth):
        first = tokens[group[0]]
        stop = min(depth + common_prefix(first[depth:], tokens[i][depth:]) for i in group)
        number = len(trie.segments)
        trie.segments.append(Segment(first[depth:stop], parent))
        for i in group:
            trie.paths[i].append(number)
        longer = [i for i in group if len(tokens[i]) > stop]
        _add_children(trie, tokens, number, longer, stop)


def _group_by_start(
    tokens: list[tuple[int, ...]], members: list[int], depth: int
) -> list[list[int]]:
    """Groups branches whose next `MIN_SHARED` tokens are the same."""
    groups: dict[object, list[int]] = {}
    for i in members:
        start = tokens[i][depth : depth + MIN_SHARED]
        # A branch that ends sooner is a group of its own.
        key = start if len(start) == MIN_SHARED else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Returns how many tokens (or characters) two sequences have in common at their beginning."""
    return next(compress(count(), map(ne, a, b)), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class BranchOrigin:
    """The place of a branch before trees were split: response `branch` of tree `tree`."""

    tree: int
    branch: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Trees that are computed side by side in one sequence."""

    trees: tuple[TokenTree, ...]
    origins: tuple[tuple[BranchOrigin, ...], ...]
    """Origins of the branches, for each tree of the row."""

    @property
    def num_tokens(self) -> int:
        """Length of the row."""
        return sum(tree.num_tokens for tree in self.trees)


def pack(trees: Sequence[TokenTree], budget: int) -> list[PackedRow]:
    """Packs trees into rows of about `budget` tokens, first fit by decreasing size.

    A tree above the budget is either split into trees with the same prompt and fewer branches, or
    kept whole in a row of its own, whichever costs less (`_split`). Rows of several trees keep the
    budget. Every branch appears in exactly one row.

    Raises:
        ValueError: the budget is not positive.
    """
    _check(budget)
    parts: list[TokenTree] = []
    origins: list[tuple[BranchOrigin, ...]] = []
    for index, tree in enumerate(trees):
        first = 0
        for part in _split(tree, budget):
            stop = first + len(part.branches)
            parts.append(part)
            origins.append(tuple(BranchOrigin(index, i) for i in range(first, stop)))
            first = stop
    rows = first_fit([part.num_tokens for part in parts], budget)
    return [PackedRow(tuple(parts[i] for i in row), tuple(origins[i] for i in row)) for row in rows]


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Packs numbers of tokens into bins of `budget`, by decreasing size.

    A number above the budget gets a bin of its own.

    Returns:
        The indices of `sizes` in each bin.

    Raises:
        ValueError: the budget is not positive.
    """
    _check(budget)
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((b for b, free in enumerate(room) if free >= sizes[i]), None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = len(bins) - 1
        bins[place].append(i)
        room[place] -= sizes[i]
    return bins


def _check(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"the token budget must be positive, got {budget!r}")


def _split(tree: TokenTree, budget: int) -> list[TokenTree]:
    """Returns a tree whole, or in parts with the same prompt, whichever costs least.

    Parts compute the prompt (and what siblings share) again; a wide row computes every token a
    little slower. Parts of `WIDTHS[i]` budgets cost the tokens of all of them, times
    (1 + WIDENING)^i. A tree beyond the last width is split.
    """
    size = tree.num_tokens
    if size <= budget or len(tree.branches) == 1:
        return [tree]
    cheapest, least = [tree], float("inf")
    for i, width in enumerate(WIDTHS):
        fits = size <= width * budget
        parts = [tree] if fits else _parts(tree, width * budget)
        cost = (1 + WIDENING) ** i * sum(part.num_tokens for part in parts)
        if cost < least:
            cheapest, least = parts, cost
        if fits:
            break
    return cheapest


def _parts(tree: TokenTree, budget: int) -> list[TokenTree]:
    """Returns parts of a tree that fit the budget, each with at least one branch, in order."""
    parts: list[list[Branch]] = [[]]
    size = len(tree.shared)
    for branch in tree.branches:
        if parts[-1] and size + len(branch.tokens) > budget:
            parts.append([])
            size = len(tree.shared)
        parts[-1].append(branch)
        size += len(branch.tokens)
    return [replace(tree, branches=tuple(branches)) for branches in parts]
