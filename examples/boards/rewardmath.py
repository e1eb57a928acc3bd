"""Turns a table of published scores of RewardMATH into rows of the board and recorded scores.

    python examples/boards/rewardmath.py SCORES.parquet FOLDER

The table has a row for each solution: `item` (the problem), `candidate` (0 is the right solution)
and a column for each scorer: `score_NAME` or `judge_NAME` with a number, or `steps_NAME` with the
list of a process reward model's. A table of a judge that compares has a row for each wrong
solution: `item`, `wrong_candidate` and `won_NAME`, whether the right one won.

FOLDER/problems.jsonl is for `--files`, and FOLDER/NAME.parquet for `--scorers X=replay:...`. Such
tables have no solutions' texts, so each has a name in its place, and the length control says
nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def convert(scores: Path, folder: Path) -> None:
    """Writes the problems and a table of recorded scores for each scorer."""
    table = pq.read_table(scores)
    folder.mkdir(parents=True, exist_ok=True)
    compares = "wrong_candidate" in table.column_names
    places = table["wrong_candidate" if compares else "candidate"].to_pylist()
    keys = list(zip(table["item"].to_pylist(), places, strict=True))
    names = [("problem " + str(item), f"solution {item}.{place}") for item, place in keys]
    rights = {item: (f"problem {item}", f"solution {item}.0") for item, _ in keys}
    everyone = dict.fromkeys([*rights.values(), *names])
    rows = [
        {
            "problem": problem,
            "problem_id": problem,
            "eval_solution": [solution],
            "solution_reference": solution,
            "solution_type": "chosen" if solution.endswith(".0") else "rejected",
        }
        for problem, solution in everyone
    ]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for column in table.column_names:
        kind, _, name = column.partition("_")
        values = dict(zip(names, table[column].to_pylist(), strict=True))
        if kind == "won":  # what won, or was not told from the right one, stands above it
            values = {key: -1.0 if won else 1.0 for key, won in values.items()}
            values |= dict.fromkeys(rights.values(), 0.0)
        elif kind not in ("score", "judge", "steps") or not name:
            continue
        recorded = {
            "prompt": [problem for problem, _ in values],
            "response": [solution for _, solution in values],
            "steps" if kind == "steps" else "score": list(values.values()),
        }
        pq.write_table(pa.table(recorded), folder / f"{name}.parquet")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
