"""Recorded process reward models by rule: `python -m evidence.steps --scores FILE --json OUT`.

FILE is a Parquet table with a row for each candidate answer: `item, candidate, is_correct` and a
list column `steps_*` for each process reward model; each item has one right candidate. The scores
of an item's candidates come from `replay:TABLE?steps=RULE`, as any command gets them, and are
judged as RewardMATH judges (arXiv 2410.01729):

    accuracy     share of items whose right candidate is strictly above all others
    with ties    the same, at least as high as all others
    MRR          mean of 1 / (1 + number of wrong candidates at least as high)

Shapes: I items, C candidates.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import run, write_figures
from panoply.config.serve import ServedModelConfig
from panoply.config.steps import AGGREGATES
from panoply.scorers.where import open_scorer
from panoply.types import Array, Bools
from panoply.wire.request import Chat

PREFIX = "steps_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    scores: Path
    """Table of step scores."""


def judged(scores_IC: Array, right_IC: Bools) -> dict[str, float]:
    """Returns accuracy, accuracy with ties and MRR; an item with a missing score counts as lost."""
    right_I1 = np.where(right_IC, scores_IC, -np.inf).max(1, keepdims=True)
    # A missing score of a wrong candidate is no win of the right one.
    ahead_IC = ~(scores_IC < right_I1) & ~right_IC
    tied_IC = (scores_IC == right_I1) & ~right_IC
    num_ahead_I = ahead_IC.sum(1)
    return {
        "ratio": float((num_ahead_I == 0).mean()),
        "with_ties": float(((ahead_IC & ~tied_IC).sum(1) == 0).mean()),
        "mrr": float((1 / (1 + num_ahead_I)).mean()),
    }


def replayed(table: pa.Table, column: str, rule: str, folder: Path) -> Array:
    """Returns the scores `[I, C]` of a recorded model, asked for by its WHERE.

    Args:
        table: ordered by item and candidate.
        column: list of the steps' scores.
        rule: that makes one score of them.
        folder: for the table that is replayed.
    """
    items, candidates = (table[name].to_pylist() for name in ("item", "candidate"))
    prompts = [f"item {item}" for item in items]
    responses = [f"candidate {candidate}" for candidate in candidates]
    recorded = {"prompt": prompts, "response": responses, "steps": table[column]}
    file = folder / f"{column}.parquet"
    pq.write_table(pa.table(recorded), file)
    scorer = open_scorer(ServedModelConfig(name=column, where=f"replay:{file}?steps={rule}"))
    by_prompt: dict[str, list[str]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        by_prompt.setdefault(prompt, []).append(response)
    chats = [
        Chat(({"role": "user", "content": prompt},), tuple(group))
        for prompt, group in by_prompt.items()
    ]
    rows = asyncio.run(scorer.score(chats))
    values = [[np.nan if score.score is None else score.score for score in row] for row in rows]
    return np.array(values)


def figures(table: pa.Table) -> dict[str, dict[str, float]]:
    """Returns what RewardMATH says of each process reward model by each rule."""
    table = table.sort_by([("item", "ascending"), ("candidate", "ascending")])
    num_items = len(set(table["item"].to_pylist()))
    right_IC = table["is_correct"].to_numpy().astype(np.bool_).reshape(num_items, -1)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for column in filter(lambda name: name.startswith(PREFIX), table.column_names):
            for rule in AGGREGATES:
                scores_IC = replayed(table, column, rule, Path(folder))
                results[f"{column.removeprefix(PREFIX)} {rule}"] = judged(scores_IC, right_IC)
    return results


def main(options: Options) -> None:
    """Judges the recorded models and prints a table for RESULTS."""
    results = figures(pq.read_table(options.scores))
    print("| process reward model | rule | accuracy | with ties | MRR |")
    print("| --- " * 5 + "|")
    for name, entry in results.items():
        model, _, rule = name.rpartition(" ")
        numbers = [100 * entry[key] for key in ("ratio", "with_ties", "mrr")]
        print(f"| {model} | {rule} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    write_figures(options.json, results)


if __name__ == "__main__":
    run(main, Options)
