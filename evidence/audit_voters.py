"""Audits by published reward models as voters: `python -m evidence.audit_voters --data DIR ...`.

RewardMATH's 483 problems have a right solution and nine wrong ones, and nine reward models'
recorded scores of each: 4,347 pairs whose labels are known. Problems are halved, into audited pairs
and trusted ones; a share of the audited labels is swapped on purpose. All is `jobs.audit` without a
head. Voters are the reward model that orders most trusted pairs right, and all that order more than
FAIR of them right, as its report tells a user who then leaves the others out. Seeds move halves,
swaps and random rows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import over_seeds, run, setting, write_figures
from evidence.audit import shown, write_halves
from panoply.config.audit import AuditConfig
from panoply.report.progress import RunLogger
from workflows.audit import run_audit

FAIR = 0.6
"""Share of trusted pairs that a voter orders right, at least."""
SHARES = (0.0, 0.1, 0.25, 0.4)
"""Shares of swapped labels."""
BOUNDS = (0.1, 0.3)
"""Bounds of the share of right labels among those that are found."""
NUM_CANDIDATES = 10
"""Solutions of a problem, the right one first."""
FEWEST = 10
"""Right labels below a threshold, without which a ratio is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    data: Path
    """Folder with `rewardmath_scores.parquet`: item, candidate (0 is right), `score_NAME`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each share."""


def write_pairs(table: pa.Table, folder: Path) -> Path:
    """Writes a pair of the right and each wrong solution; names stand for texts."""
    rows = [
        {
            "prompt": f"problem {item}",
            "chosen": f"solution {item}.0",
            "rejected": f"solution {item}.{candidate}",
            "group": str(item),
        }
        for item, candidate in zip(
            table["item"].to_pylist(), table["candidate"].to_pylist(), strict=True
        )
        if candidate
    ]
    file = folder / "rewardmath.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def write_recorded(table: pa.Table, folder: Path) -> dict[str, Path]:
    """Writes the recorded scores of each reward model; returns the files by name."""
    items, candidates = table["item"].to_pylist(), table["candidate"].to_pylist()
    files: dict[str, Path] = {}
    for column in table.column_names:
        kind, _, name = column.partition("_")
        if kind != "score":
            continue
        files[name] = folder / f"{name}.parquet"
        recorded = {
            "prompt": [f"problem {item}" for item in items],
            "response": [f"solution {i}.{c}" for i, c in zip(items, candidates, strict=True)],
            "score": table[column],
        }
        pq.write_table(pa.table(recorded), files[name])
    return files


def audit(
    pairs: Path,
    voters: Mapping[str, Path],
    share: float,
    seed: int,
    folder: Path,
    max_false: float = 0.1,
) -> dict[str, Any]:
    """Returns the numbers of one audit."""
    folder.mkdir()
    audited, trusted = write_halves(pairs, seed, folder)
    config = AuditConfig(
        pairs=(audited,),
        gold_pairs=(trusted,),
        scorers=tuple(f"{name}=replay:{file}" for name, file in voters.items()),
        head="none",
        flipped=share,
        max_false=max_false,
        seed=seed,
        out=str(folder / "run"),
        report_to=("none",),
    )
    return run_audit(config, RunLogger())["audit"]


def fair_voters(numbers: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the voters that order more than FAIR of the trusted pairs right, best first."""
    accuracy = {name: numbers["voters"][name]["accuracy_trusted"] for name in files}
    ranked = sorted(files, key=lambda name: -accuracy[name])
    return {name: files[name] for name in ranked if accuracy[name] > FAIR}


def largest_ratio(table: pa.Table, name: str) -> float:
    """Returns how many times as frequent low margins are among swapped as among right labels.

        max_t  #{m: -m <= t} / #{m: m <= t}     over t < 0 with FEWEST right labels or more below

    What a bound F lets through where a share q is swapped has a ratio of (1 - F) (1 - q) / (F q).
    """
    scores = np.array(table[f"score_{name}"].to_pylist(), np.float64)
    of_item = scores.reshape(-1, NUM_CANDIDATES)
    margins = np.sort((of_item[:, :1] - of_item[:, 1:]).ravel())
    thresholds = margins[FEWEST - 1 :]
    thresholds = thresholds[thresholds < 0]
    right = np.searchsorted(margins, thresholds, side="right")
    swapped = len(margins) - np.searchsorted(margins, -thresholds, side="left")
    return float((swapped / right).max())


def row_of(voters: str, share: float, runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line of the table."""
    cells = [voters, f"{share:.0%}", shown(over_seeds([run["suspect"] for run in runs]), 0)]
    if share:
        rows = [run["planted"]["rows"] for run in runs]
        for key in ("precision", "recall", "at_budget"):
            values = [row["votes"][key] for row in rows if not np.isnan(row["votes"][key])]
            cells.append(shown(over_seeds(values) if values else None))
        # The best voter has another name in every run.
        plain = [{name.partition(":")[0]: row[name] for name in row} for row in rows]
        for name in plain[0]:
            if name != "votes":
                cells.append(f"{name} {np.mean([row[name]['at_budget'] for row in plain]):.2f}")
    return f"| {' | '.join(cells)} |"


def main(options: Options) -> None:
    """Runs the audits and prints a table for RESULTS."""
    table = pq.read_table(options.data / "rewardmath_scores.parquet")
    figures: dict[str, Any] = {"setting": setting(np, pa, seeds=list(options.seeds)), "runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        pairs, files = write_pairs(table, work), write_recorded(table, work)
        fair: dict[int, dict[str, Path]] = {}
        for seed in options.seeds:
            numbers = audit(pairs, files, 0.0, seed, work / f"choice-{seed}")
            fair[seed] = fair_voters(numbers, files)
        figures["voters"] = {seed: list(voters) for seed, voters in fair.items()}
        print(json.dumps(figures["voters"]))
        figures["largest ratio"] = {name: largest_ratio(table, name) for name in files}
        print(json.dumps(figures["largest ratio"]))
        for label, num in (("best", 1), ("fair", None)):
            for share, bound in product(SHARES, BOUNDS):
                name = f"{label}/{share}/{bound}"
                runs = [
                    audit(
                        pairs,
                        dict(list(fair[seed].items())[:num]),
                        share,
                        seed,
                        work / f"{name.replace('/', '-')}-{seed}",
                        bound,
                    )
                    for seed in options.seeds
                ]
                figures["runs"][name] = runs
                print(row_of(f"{label} | {bound}", share, runs), flush=True)
                write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
