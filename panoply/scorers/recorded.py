"""Scores that were recorded before, looked up by prompt and response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from panoply.data.data_file import Unreadable
from panoply.data.read import Input, open_input
from panoply.data.schema import text_id
from panoply.wire.request import Chat, Item, Score, scored


class RecordedScorer:
    """Table of recorded scores."""

    def __init__(self, file: str) -> None:
        """Reads a table with `prompt` (turns, or a user's text), `response` and `score`.

        Raises:
            ValueError, FileNotFoundError: see `open_input`; or it lacks one of these columns.
        """
        self.file = file
        self.scores: dict[str, float] = {}
        for opened in open_input(Input(file)):
            if missing := sorted({"prompt", "response", "score"} - set(opened.columns)):
                raise ValueError(
                    f"{opened.label} has no column {missing[0]!r}, which a replay needs"
                )
            for row in opened.rows(["prompt", "response", "score"]):
                if isinstance(row, Unreadable) or row["score"] is None:
                    continue
                prompt: Any = row["prompt"]
                turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                self.scores[text_id(turns, str(row["response"]))] = float(cast(float, row["score"]))

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the recorded scores; an error where there is none."""
        return tuple(self._item(item) for item in items)

    def _item(self, item: Item) -> tuple[Score, ...]:
        if not isinstance(item, Chat):
            why = "recorded scores are found by turns, not by rendered text or tokens"
            return (Score(error=why),) * len(item.responses)
        values = [self.scores.get(text_id(item.prompt, response)) for response in item.responses]
        unknown = Score(error=f"{self.file!r} has no score of this response")
        return tuple(unknown if value is None else scored(value) for value in values)
