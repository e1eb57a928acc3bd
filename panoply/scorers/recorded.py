"""Scores that were recorded before, looked up by prompt and response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from panoply.config import require
from panoply.config.steps import StepRule
from panoply.data.data_file import Unreadable
from panoply.data.read import Input, open_input
from panoply.data.schema import text_id
from panoply.wire.request import Chat, Details, Item, Score, scored


class RecordedScorer:
    """Table of recorded scores."""

    def __init__(self, file: str, rule: StepRule | None = None) -> None:
        """Reads a table with `prompt` (turns, or a user's text), `response` and `score`.

        Args:
            file: the table.
            rule: makes the score of a response from a list of its steps' scores, which stands in
                the column `steps` in place of `score`.

        Raises:
            ValueError, FileNotFoundError: see `open_input`; it lacks one of these columns; or the
                rule says how texts are split, which a table does not need.
        """
        self.file, self.rule = file, rule
        column = "score" if rule is None else "steps"
        if rule is not None:
            is_plain = replace(rule, steps="min") == StepRule()
            require(is_plain, "replay", rule.query, "`?steps=RULE` alone: the steps are recorded")
        self.scores: dict[str, Score] = {}
        for opened in open_input(Input(file)):
            if missing := sorted({"prompt", "response", column} - set(opened.columns)):
                advice = ""
                if missing[0] == "score" and "steps" in opened.columns:
                    advice = ": it has steps, so name their rule, as in `replay:FILE?steps=min`"
                raise ValueError(
                    f"{opened.label} has no column {missing[0]!r}, which a replay needs{advice}"
                )
            for row in opened.rows(["prompt", "response", column]):
                if isinstance(row, Unreadable) or row[column] is None:
                    continue
                prompt: Any = row["prompt"]
                turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                score = self._score(row[column])
                self.scores[text_id(turns, str(row["response"]))] = score

    def _score(self, value: Any) -> Score:
        """Returns the score in a cell: a number, or what the rule makes of a list of them."""
        if self.rule is None:
            return scored(float(value))
        steps = tuple(None if step is None else float(step) for step in value)
        if not steps or not all(step is None or math.isfinite(step) for step in steps):
            return Score(error=f"{self.file!r} has no scores of the steps of this response")
        score = self.rule.combined(steps)
        if score is not None:
            return scored(score, steps=steps)
        why = "a step of this response has no recorded score, and so it has none"
        return Score(error=why, details=Details(steps=steps))

    def about(self) -> dict[str, JsonValue]:
        """Returns how many responses the table has."""
        return {"limits": {"recorded_responses": len(self.scores)}}

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the recorded scores; an error where there is none."""
        return tuple(self._item(item) for item in items)

    def _item(self, item: Item) -> tuple[Score, ...]:
        if not isinstance(item, Chat):
            why = "recorded scores are found by turns, not by rendered text or tokens"
            return (Score(error=why),) * len(item.responses)
        unknown = Score(error=f"{self.file!r} has no score of this response")
        ids = [text_id(item.prompt, response) for response in item.responses]
        return tuple(self.scores.get(each, unknown) for each in ids)
