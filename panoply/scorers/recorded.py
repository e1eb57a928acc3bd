"""Scores that were recorded before, looked up by prompt and response, or by item and candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from panoply.config import require
from panoply.config.steps import StepRule
from panoply.data.data_file import Unreadable
from panoply.data.read import Input, Opened, open_input
from panoply.data.rollouts import item_id
from panoply.data.schema import text_id
from panoply.data.score_file import SCORES, as_score
from panoply.wire.request import Chat, Details, Item, Score, scored


class RecordedScorer:
    """Table of recorded scores."""

    def __init__(self, file: str, name: str = "", rule: StepRule | None = None) -> None:
        """Reads a table with `prompt` (turns, or a user's text), `response` and `score`.

        A file of scores (`panoply.data.score_file`), as `jobs.rescore` leaves it, holds the scores
        of whole items, each of the same responses to the same prompt.

        Args:
            file: the table.
            name: scorer whose rows of a file of scores are taken, where it has several.
            rule: makes the score of a response from a list of its steps' scores, which stands in
                the column `steps` in place of `score`.

        Raises:
            ValueError, FileNotFoundError: see `open_input`; it lacks one of these columns; it has
                several scorers and none of this name; or the rule says how texts are split, which
                a table does not need.
        """
        self.file, self.rule = file, rule
        column = "score" if rule is None else "steps"
        if rule is not None:
            is_plain = replace(rule, steps="min") == StepRule()
            require(is_plain, "replay", rule.query, "`?steps=RULE` alone: the steps are recorded")
        self.scores: dict[str, Score] = {}
        self.items: dict[str, dict[int, Score]] = {}
        for opened in open_input(Input(file)):
            if {"scorer", "item_id", "candidate", "score"} <= opened.columns.keys():
                self._read_items(opened, name)
                continue
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
        unknown = Score(error=f"{self.file!r} has no score of this response")
        if self.items:
            recorded = self.items.get(item_id(item), {})
            return tuple(recorded.get(place, unknown) for place in range(len(item.responses)))
        ids = [text_id(item.prompt, response) for response in item.responses]
        return tuple(self.scores.get(each, unknown) for each in ids)
