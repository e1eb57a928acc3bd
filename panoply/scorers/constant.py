"""A scorer that gives every response the same score: a floor to compare with."""

from __future__ import annotations

from collections.abc import Sequence

from panoply.wire.request import Item, Score


class ConstantScorer:
    """Scores every response alike."""

    def __init__(self, value: float) -> None:
        self.value = value

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the constant for all responses of all items."""
        return tuple(tuple(Score(score=self.value) for _ in item.responses) for item in items)
