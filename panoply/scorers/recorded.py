"""Scores that were recorded before, looked up by prompt and response, or by item and candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import JsonValue

from panoply.config import require
from panoply.config.steps import StepRule
from panoply.data.data_file import Unreadable
from panoply.data.locate import find_files
from panoply.data.read import Input, Opened, open_input
from panoply.data.rollouts import item_id
from panoply.data.schema import text_id
from panoply.data.score_file import ScoreTable, as_score, read_scores, scorers_of
from panoply.files import reading
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
        self.table = ScoreTable()
        self.name = name
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
        return {"limits": {"recorded_responses": len(self.scores) + self.table.num_rows}}

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the recorded scores; an error where there is none."""
        return tuple(self._item(item) for item in items)

    def _read_items(self, opened: Opened, name: str) -> None:
        """Reads a file of scores.

        Raises:
            ValueError: it is damaged, no Parquet, or of several scorers and none of this name.
        """
        for file in find_files(self.file):
            if file.label == opened.label:
                break
        else:
            raise ValueError(f"{opened.label} has scores by item, which a file has to hold")
        if file.suffix != ".parquet":
            raise ValueError(
                f"{opened.label} has scores by item, which are read from Parquet alone"
            )
        with reading(Path(file.path)), file.open_file() as source:
            scorers = scorers_of(source)
        if name not in scorers and len(scorers) > 1:
            raise ValueError(
                f"{opened.label} has the scores of {', '.join(scorers)}: name the scorer after "
                f"one of them, as in {scorers[0]}=replay:{self.file}"
            )
        with reading(Path(file.path)), file.open_file() as source:
            rows = read_scores(source, name if name in scorers else scorers[0])
        self.table.add(rows.set_column(0, "scorer", pa.repeat(name, rows.num_rows)))

    def rows(self, items: Sequence[str]) -> pa.Table:
        """Returns what a file of scores has of some items, as rows of this scorer."""
        return self.table.rows(self.name, items)

    def recorded(self) -> Iterator[Score]:
        """Yields all recorded scores."""
        yield from self.scores.values()
        for name in self.table.scorers:
            yield from map(as_score, self.table.rows(name, self.table.items(name)).to_pylist())

    def _item(self, item: Item) -> tuple[Score, ...]:
        if not isinstance(item, Chat):
            why = "recorded scores are found by turns, not by rendered text or tokens"
            return (Score(error=why),) * len(item.responses)
        unknown = Score(error=f"{self.file!r} has no score of this response")
        if self.table.scorers:
            rows = self.rows([item_id(item)]).to_pylist()
            recorded = {row["candidate"]: as_score(row) for row in rows}
            return tuple(recorded.get(place, unknown) for place in range(len(item.responses)))
        ids = [text_id(item.prompt, response) for response in item.responses]
        return tuple(self.scores.get(each, unknown) for each in ids)
