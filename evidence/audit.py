"""Audits of real pairs whose labels are partly swapped: `python -m evidence.audit --data DIR ...`.

Each source is halved by prompt: pairs that are audited, and trusted pairs like them. A share of the
labels of the first half is swapped on purpose, among all pairs or among those whose chosen response
is longer, as a rater would who likes short ones. All is as `jobs.audit` does it, whose only voter
here is the head that it fits itself to features of SmolLM2-135M-Instruct, but that a source is
embedded once for all runs. Seeds move halves, folds, swaps and random rows. Labels that were wrong
before count as right, so precision is a lower bound.

    found       pairs that votes propose to change, with the share of swapped ones (precision) and
                the share of the swapped ones that are among them (recall)
    at budget   share of swapped labels among the lowest as many pairs, by votes and by controls
    effect      accuracy of fresh heads on the untouched half of the trusted pairs, fitted to labels
                as they are, cleaned, and without as many random rows

`--structure` names sources whose structural checks alone are counted, without any model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import over_seeds, run, setting, write_figures
from panoply.config.audit import Among, AuditConfig
from panoply.data.schema import uniform
from panoply.report.progress import RunLogger
from panoply.types import Floats
from workflows.audit import (
    electorate_of,
    embed_differences,
    evidence,
    find,
    labels_of,
    report,
    run_audit,
)
from workflows.cluster.audited import AuditedPairs, read_audited

VOTES = "votes"
EFFECTS: Mapping[str, str] = {
    "cleaned - raw": "cleaned - raw",
    "cleaned - random rows left out": "cleaned - random",
    "cleaned and trusted pairs - raw and trusted pairs": "the same, trusted pairs with both",
}
"""Differences of heads, with their names in the table."""
PLANTED: Sequence[tuple[float, Among]] = (
    (0.0, "any"),
    (0.1, "any"),
    (0.25, "any"),
    (0.4, "any"),
    (0.1, "chosen_longer"),
    (0.25, "chosen_longer"),
)
"""Shares of swapped labels, and among which pairs they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    data: Path
    """Folder with a Parquet file of pairs for each source."""
    sources: tuple[str, ...] = ("xstest", "truthfulqa", "hh_harmless", "ultrafeedback_mini")
    """Sources that are audited, one at a time."""
    structure: tuple[str, ...] = ("ukp_convarg", "dsp_domains")
    """Sources of which only the structure is checked."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each source and share."""
    max_pairs: int = 1500
    """Most pairs of each half, by and large."""
    num_workers: int = 2
    """Embedding actors."""
    store: str = ""
    """Root of a feature cache that outlives the runs; empty: the user's."""


@dataclass(frozen=True)
class EmbeddedSource:
    """Pairs of a source, and features of each chosen minus those of the rejected response."""

    file: Path
    differences: Mapping[tuple[str, str], Floats]
    """By the ids of the two responses."""

    def of(self, pairs: AuditedPairs) -> Floats:
        """Returns the differences `[N, D]` of pairs of the source, some of them swapped."""
        rows: list[Floats] = []
        for chosen, rejected in zip(pairs.chosen_N, pairs.rejected_N, strict=True):
            difference = self.differences.get((chosen, rejected))
            rows.append(-self.differences[rejected, chosen] if difference is None else difference)
        return np.stack(rows)


def embedded(options: Options, source: str, folder: Path) -> EmbeddedSource:
    """Draws pairs of a source, and embeds them once for all runs."""
    table = pq.read_table(options.data / f"{source}.parquet")
    drawn = np.random.default_rng(0).permutation(len(table))[: 2 * options.max_pairs]
    file = folder / f"{source}.parquet"
    pq.write_table(table.take(pa.array(drawn)), file)
    config = AuditConfig(pairs=(str(file),), num_workers=options.num_workers, store=options.store)
    pairs = read_audited(config, (), folder / source / "data", RunLogger())
    difference_ND = embed_differences(config, pairs, RunLogger())
    keys = zip(pairs.chosen_N.tolist(), pairs.rejected_N.tolist(), strict=True)
    return EmbeddedSource(file, dict(zip(keys, difference_ND, strict=True)))


def write_halves(file: Path, seed: int, folder: Path) -> tuple[str, str]:
    """Writes two halves of the prompts of a file; returns their files."""
    table = pq.read_table(file)
    names = [name for name in ("prompt", "group") if name in table.column_names]
    keys = [
        row.get("group") or json.dumps(row["prompt"]) for row in table.select(names).to_pylist()
    ]
    is_first = np.array([uniform(seed, "half", key) < 0.5 for key in keys])
    files: list[str] = []
    for name, rows in (("pairs", is_first), ("trusted", ~is_first)):
        files.append(str(folder / f"{file.stem}-{name}.parquet"))
        pq.write_table(table.filter(pa.array(rows)), files[-1])
    return files[0], files[1]


def audit(
    source: EmbeddedSource, share: float, among: Among, seed: int, folder: Path
) -> dict[str, Any]:
    """Returns the numbers of one audit, as `jobs.audit` has them."""
    audited, trusted = write_halves(source.file, seed, folder)
    config = AuditConfig(
        pairs=(audited,),
        gold_pairs=(trusted,),
        flipped=share,
        flipped_among=among,
        train=True,
        seed=seed,
    )
    pairs = read_audited(config, (), folder / "run" / "data", RunLogger())
    difference_ND = source.of(pairs)
    electorate = electorate_of(config, pairs, {}, difference_ND)
    findings = find(config, pairs, electorate)
    labels = labels_of(config, pairs, findings, {})
    return {
        **report(pairs, findings, {}, electorate, {}),
        **evidence(config, pairs, electorate, labels, difference_ND),
    }


def structure(options: Options, source: str, folder: Path) -> dict[str, dict[str, int]]:
    """Returns how many rows each structural check names, by proposed action."""
    config = AuditConfig(
        pairs=(str(options.data / f"{source}.parquet"),),
        head="none",
        out=str(folder / source),
        report_to=("none",),
    )
    return run_audit(config, RunLogger())["audit"]["checks"]


def figures_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over seeds with the extremes of one source, share and kind."""
    figures: dict[str, Any] = {
        "pairs": over_seeds([run["num_pairs"] for run in runs]),
        "found": over_seeds([run["suspect"] for run in runs]),
        "accuracy on trusted": over_seeds(
            [run["voters"]["head"]["accuracy_trusted"] for run in runs]
        ),
    }
    if all("planted" in run for run in runs):
        rows = [run["planted"]["rows"] for run in runs]
        figures["flipped"] = over_seeds([run["planted"]["flipped"] for run in runs])
        for name in rows[0]:
            for key in ("precision", "recall", "at_budget", "auc"):
                # Nothing was found: a share of nothing counts nowhere.
                values = [row[name][key] for row in rows if row[name][key] == row[name][key]]
                if values:
                    figures[f"{name}/{key}"] = over_seeds(values)
    for name in EFFECTS:
        differences = [run["effect"]["differences"][name] for run in runs]
        figures[name] = over_seeds([difference["value"] for difference in differences])
        figures[name]["ci95"] = [difference["ci95"] for difference in differences]
    return figures


def shown(figure: Mapping[str, float] | None, digits: int = 2, sign: str = "") -> str:
    """Returns a mean with its extremes for a table."""
    if figure is None:
        return "-"
    values = [format(figure[key], f"{sign}.{digits}f") for key in ("ratio", "min", "max")]
    return f"{values[0]} [{values[1]}, {values[2]}]"


def row_of(source: str, share: float, among: str, figures: Mapping[str, Any]) -> str:
    """Returns a line of the table."""
    controls = [
        figures[name]["ratio"]
        for name in figures
        if name.endswith("/at_budget") and not name.startswith(VOTES)
    ]
    cells = [
        f"{source}, {figures['pairs']['ratio']:.0f}",
        f"{share:.0%}" + ("" if among == "any" else f", {among.replace('_', ' ')}"),
        shown(figures["accuracy on trusted"]),
        shown(figures["found"], 0),
        *(shown(figures.get(f"{VOTES}/{key}")) for key in ("precision", "recall", "at_budget")),
        " ".join(f"{value:.2f}" for value in controls) or "-",
        *(shown(figures[name], 3, "+") for name in EFFECTS),
    ]
    return f"| {' | '.join(cells)} |"


def main(options: Options) -> None:
    """Runs the audits and prints a table for RESULTS."""
    import torch

    figures: dict[str, Any] = {"setting": setting(torch, seeds=list(options.seeds)), "runs": {}}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source in options.structure:
            figures[f"{source}/structure"] = structure(options, source, folder)
            write_figures(options.json, figures)
        for source in options.sources:
            features = embedded(options, source, folder)
            for share, among in PLANTED:
                name = f"{source}/{share}/{among}"
                runs = [audit(features, share, among, seed, folder) for seed in options.seeds]
                figures["runs"][name] = runs
                figures[name] = figures_of(runs)
                lines.append(row_of(source, share, among, figures[name]))
                print(lines[-1], flush=True)
                write_figures(options.json, figures)
    print("structure:")
    for source in options.structure:
        print(f"  {source}: {json.dumps(figures[f'{source}/structure'])}")
    columns = (
        *("source, pairs", "swapped", "head right on trusted", "found", "precision", "recall"),
        *("at budget", "controls: random, length, head without folds", *EFFECTS.values()),
    )
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main, Options)
