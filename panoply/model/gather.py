"""Gathering conversations of any origin into the fewest token trees that hold them.

Responses that came apart (one to a request, as most clients send them) share their prompt here
again: what is compared is token ids, so it does not matter who rendered the prompt, or where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from panoply.model.tree import Branch, TokenTree, common_prefix


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One prompt with one response, as tokens."""

    tokens: tuple[int, ...]
    gate: int
    """Index of the token whose state conditions a gate; it lies before `start`."""
    start: int
    """Index of the response's first own token."""
    stop: int
    """Index after the response's last own token."""
    prompt_tokens_cut: int = 0
    """Tokens that a limit cut away in front of what is left of the prompt."""
    response_tokens_cut: int = 0
    """Tokens that a limit cut away behind what is left of the response."""

    def __post_init__(self) -> None:
        if not 0 <= self.gate < self.start < self.stop <= len(self.tokens):
            raise ValueError(
                f"need 0 <= gate < start < stop <= length, got gate={self.gate!r}, "
                f"start={self.start!r}, stop={self.stop!r} in {len(self.tokens)} tokens"
            )

    @property
    def num_cut(self) -> int:
        """Tokens of the conversation that limits cut away."""
        return self.prompt_tokens_cut + self.response_tokens_cut

    def branch(self, shared: int) -> Branch:
        """Returns what follows the first `shared` tokens."""
        return Branch(self.tokens[shared:], self.start - shared, self.stop - shared)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Trees, and the place of each conversation in them."""

    trees: list[TokenTree]
    places: list[int]
    """Row of each conversation among the responses of all trees, tree by tree."""

    @property
    def num_tokens(self) -> int:
        """Tokens that one forward computes."""
        return sum(tree.num_tokens for tree in self.trees)


def gather(conversations: Sequence[Tokenized]) -> Gathered:
    """Returns the trees of conversations, those with a common beginning in one."""
    order = sorted(range(len(conversations)), key=lambda i: conversations[i].tokens)
    trees: list[TokenTree] = []
    places = [0] * len(conversations)
    row = 0
    for group, shared in _alike([conversations[i] for i in order]):
        branches = tuple(c.branch(shared) for c in group)
        trees.append(TokenTree(group[0].tokens[:shared], branches, group[0].gate))
        for _ in group:
            places[order[row]] = row
            row += 1
    return Gathered(trees, places)


def _alike(ordered: Sequence[Tokenized]) -> Iterator[tuple[Sequence[Tokenized], int]]:
    """Yields runs of conversations, ordered by their tokens, with the length of what a run shares.

    In that order neighbors have the longest beginnings in common. A run ends where the gate's token
    is not shared, and where a conversation has twice as much in common with the next as with the
    one before: they share the opening of a template, not a prompt. No tree shares a token of a
    response.
    """
    common = [
        common_prefix(a.tokens[: a.start], b.tokens[: b.start]) if a.gate == b.gate else 0
        for a, b in pairwise(ordered)
    ]
    common.append(0)  # nothing follows the last one
    first = 0
    for i in range(1, len(ordered) + 1):
        here = common[i - 1]
        if i < len(ordered) and here > ordered[first].gate and 2 * here >= common[i]:
            continue
        run = ordered[first:i]
        yield run, min([*common[first : i - 1], *(c.start for c in run)])
        first = i
