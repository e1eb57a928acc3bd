"""Token trees: one prompt and its responses, so that what they share is computed once.

    prompt tokens ──┬── response 0
                    ├── response 1
                    └── response 2

A pair costs P + 2R tokens instead of 2(P + R). Responses that begin alike share that beginning too.
Many trees are packed into one row under a token budget; a token sees its own path to the root only,
and its position is its depth in the tree, so every response gets the features it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from operator import ne

SHARED_FROM = 4
"""Fewest common tokens for which responses share a segment. By estimate, not by measurement: an
attention call more per layer costs about as much as the linear layers of one or two tokens."""

WIDENING = 0.05
"""Most that a token costs more in a row four times as wide (float32, one thread, rows of 256 to
1024 tokens of SmolLM2-135M): less than most repeated prompts."""

WIDER = (0, 1, 2)
"""How many times four budgets wider a part of a split tree may be."""
MOST_BUDGETS = 4 ** WIDER[-1]
"""A tree stays whole up to this many budgets, where that is cheaper than splitting it."""


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
    """A tree as segments, parents first; `paths` lists each branch's segments after the prompt."""

    segments: list[Segment]
    paths: list[list[int]]


def build_trie(tree: TokenTree) -> Trie:
    """Returns the trie of a tree's responses, with no node for less than `SHARED_FROM` tokens."""
    grown = Trie([Segment(tree.shared, -1)], [[] for _ in tree.branches])
    _fork(grown, [branch.tokens for branch in tree.branches], 0, list(range(len(tree.branches))), 0)
    return grown


def _fork(
    grown: Trie, tokens: list[tuple[int, ...]], parent: int, chosen: list[int], depth: int
) -> None:
    """Grows the segments of the branches `chosen`, which are alike in their first `depth`."""
    for group in _alike(tokens, chosen, depth):
        first = tokens[group[0]]
        stop = min(depth + common_prefix(first[depth:], tokens[i][depth:]) for i in group)
        grown.segments.append(Segment(first[depth:stop], parent))
        here = len(grown.segments) - 1
        for i in group:
            grown.paths[i].append(here)
        if longer := [i for i in group if len(tokens[i]) > stop]:
            _fork(grown, tokens, here, longer, stop)


def _alike(tokens: list[tuple[int, ...]], chosen: list[int], depth: int) -> list[list[int]]:
    """Groups branches whose next `SHARED_FROM` tokens are the same."""
    groups: dict[object, list[int]] = {}
    for i in chosen:
        start = tokens[i][depth : depth + SHARED_FROM]
        groups.setdefault(start if len(start) == SHARED_FROM else i, []).append(i)
    return list(groups.values())


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Returns how many tokens (or characters) two sequences have in common at their beginning."""
    return next(compress(count(), map(ne, a, b)), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class BranchOrigin:
    """Where a branch came from, after trees were split: response `branch` of tree `tree`."""

    tree: int
    branch: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Trees that are computed side by side in one sequence."""

    trees: tuple[TokenTree, ...]
    origins: tuple[tuple[BranchOrigin, ...], ...]
    """For each tree of the row, the origin of its branches."""

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
    pieces = [piece for index, tree in enumerate(trees) for piece in _split(index, tree, budget)]
    sizes = [piece[0].num_tokens for piece in pieces]
    return [
        PackedRow(tuple(pieces[i][0] for i in row), tuple(pieces[i][1] for i in row))
        for row in first_fit(sizes, budget)
    ]


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Packs numbers of tokens into bins of `budget`, the larger first; a larger one gets its own.

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


def _split(
    index: int, tree: TokenTree, budget: int
) -> list[tuple[TokenTree, tuple[BranchOrigin, ...]]]:
    """Returns a tree whole, or in parts, whichever is the cheapest.

    Parts compute the prompt (and what siblings share) again; a wide row computes every token a
    little slower. Parts of w tokens cost the tokens of all of them, times 1 + WIDENING for each
    time that w is four budgets wider; w is 1, 4 or 16 budgets. A tree beyond the last is split.
    """
    size = tree.num_tokens
    whole = [(tree, tuple(BranchOrigin(index, i) for i in range(len(tree.branches))))]
    if size <= budget or len(tree.branches) == 1:
        return whole
    cheapest, least = whole, float("inf")
    for times in WIDER:
        fits = size <= 4**times * budget
        parts = whole if fits else list(_parts(index, tree, 4**times * budget))
        cost = (1 + WIDENING) ** times * sum(part.num_tokens for part, _ in parts)
        if cost < least:
            cheapest, least = parts, cost
        if fits:
            break
    return cheapest


def _parts(
    index: int, tree: TokenTree, budget: int
) -> Iterable[tuple[TokenTree, tuple[BranchOrigin, ...]]]:
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


def _part(
    index: int, tree: TokenTree, chosen: list[int]
) -> tuple[TokenTree, tuple[BranchOrigin, ...]]:
    branches = tuple(tree.branches[i] for i in chosen)
    return replace(tree, branches=branches), tuple(BranchOrigin(index, i) for i in chosen)
