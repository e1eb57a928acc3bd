"""Scores that were recorded before, looked up by prompt and response, or by item and candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from panoply.data.data_file import Unreadable
from panoply.data.read import Input, Opened, open_input
from panoply.data.rollouts import item_id
from panoply.data.schema import text_id
from panoply.data.score_file import SCORES, as_score
from panoply.wire.request import Chat, Item, Score, scored


class RecordedScorer:
    """Table of recorded scores."""

    def __init__(self, file: str, name: str = "") -> None:
        """Reads a table with `prompt` (turns, or a user's text), `response` and `score`.

        A file of scores (`panoply.data.score_file`), as `jobs.rescore` leaves it, holds the scores
        of whole items, each of the same responses to the same prompt.

        Args:
            file: the table.
            name: scorer whose rows of a file of scores are taken, where it has several.

        Raises:
            ValueError, FileNotFoundError: see `open_input`; or it lacks one of these columns, or
                has several scorers and none of this name.
        """
        self.file = file
        self.scores: dict[str, float] = {}
        self.items: dict[str, dict[int, Score]] = {}
        for opened in open_input(Input(file)):
            if {"scorer", "item_id", "candidate", "score"} <= opened.columns.keys():
                self._read_items(opened, name)
                continue
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

    def _read_items(self, opened: Opened, name: str) -> None:
        rows = [row for row in opened.rows(None) if not isinstance(row, Unreadable)]
        scorers = sorted({str(row["scorer"]) for row in rows})
        if name not in scorers and len(scorers) > 1:
            raise ValueError(
                f"{opened.label} has the scores of {', '.join(scorers)}: name the scorer after "
                f"one of them, as in {scorers[0]}=replay:{self.file}"
            )
        for row in rows:
            if row["scorer"] == name or len(scorers) == 1:
                values: dict[str, Any] = {column: row.get(column) for column in SCORES.names}
                by_candidate = self.items.setdefault(values["item_id"], {})
                by_candidate[values["candidate"]] = as_score(values)

    def _item(self, item: Item) -> tuple[Score, ...]:
        unknown = Score(error=f"{self.file!r} has no score of this response")
        if not isinstance(item, Chat):
            why = "recorded scores are found by turns, not by rendered text or tokens"
            return (Score(error=why),) * len(item.responses)
        if self.items:
            recorded = self.items.get(item_id(item), {})
            return tuple(recorded.get(place, unknown) for place in range(len(item.responses)))
        values = [self.scores.get(text_id(item.prompt, response)) for response in item.responses]
        return tuple(unknown if value is None else scored(value) for value in values)
