"""Escalation on recorded scores: `python -m evidence.escalation --scores S --verdicts V --json F`.

S is a Parquet table with a row for each candidate answer: `item, candidate, is_correct` and a
column `score_*` for each reward model. V has a row for each pair of a right and a wrong candidate
that a judge has seen: `item, wrong_candidate` and a column `won_*` for each judge, true where it
chose the right one, null where it gave no verdict; a pair in both orders is two rows, whose
verdicts are averaged. Each item has one right candidate.

Items are split in halves, 20 times; rules are fitted on one half and judged on the other. The
figures are shares of what asking the judge about every pair would add to the accuracy on pairs
(ties count half), at shares of its calls:

    random    the judge's verdict in place of the model's, on random pairs
    plain     the same, on the pairs with the smallest |margin|; no verdict counts as a tie
    fused     `panoply.scorers.composite.escalation`: margins in units of the item's group, and both
              kinds of evidence added up; no verdict leaves the model's

and for the fused rule the same at the threshold that was frozen on the fitting half. `told` counts
the splits in which the fitting half shows that the margins tell where to ask.

Shapes: I items, C candidates, P pairs, F shares of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import harness
from benchmarks.harness import run, write_figures
from panoply.measure.intervals import wins
from panoply.scorers.composite.escalation import (
    fit_escalation,
    fused_log_odds,
    group_unit,
    pooled_spread,
    rank_by_size,
    threshold,
)
from panoply.types import Array, Ints

SHARES = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
"""Shares of the pairs about which the judge is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(harness.Options):
    """Options of the runs."""

    scores: Path
    """Table of scores."""
    verdicts: Path
    """Table of verdicts."""
    judge: str = "gpt4"
    """Judge that is asked, a column `won_*` without its prefix."""
    splits: int = 20
    """Splits of the items in halves."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Scores of one reward model and verdicts of one judge on the same pairs."""

    groups: Mapping[int, Array]
    """Scores of all candidates of each item."""
    item_P: Ints
    margin_P: Array
    """Score of the right candidate less the wrong one's."""
    verdict_P: Array
    """1 where the judge chose the right one, -1 where the other, between where its orders differ;
    NaN where it gave no verdict."""

    def of(self, items: Ints) -> Recorded:
        """Returns the part that is of some items."""
        rows = np.isin(self.item_P, items)
        groups = {item: self.groups[item] for item in map(int, items)}
        return Recorded(groups, self.item_P[rows], self.margin_P[rows], self.verdict_P[rows])

    def margins_in_units(self, spread: float) -> Array:
        """Returns the margins in units of their groups, `[P]`."""
        units = {item: group_unit(scores, spread) for item, scores in self.groups.items()}
        return self.margin_P / np.array([units[item] for item in map(int, self.item_P)])


def read_recorded(scores: Path, verdicts: Path, judge: str) -> dict[str, Recorded]:
    """Returns the pairs of every reward model with the verdicts of a judge."""
    table = pq.read_table(scores).to_pandas().sort_values(["item", "candidate"])
    judged = pq.read_table(verdicts, columns=["item", "wrong_candidate", f"won_{judge}"])
    pairs = judged.to_pandas()
    won = pairs.pop(f"won_{judge}")
    # A verdict in one order is 1 or -1; the mean passes over orders without a verdict.
    pairs["verdict"] = [np.nan if value is None else 2.0 * value - 1 for value in won]
    pairs = pairs.groupby(["item", "wrong_candidate"], as_index=False).verdict.mean()
    right = table[table.is_correct].set_index("item")
    candidates = table.set_index(["item", "candidate"])
    places = list(zip(pairs.item, pairs.wrong_candidate, strict=True))
    recorded: dict[str, Recorded] = {}
    for column in [name for name in table.columns if name.startswith("score_")]:
        groups = {int(i): g.to_numpy(np.float64) for i, g in table.groupby("item")[column]}
        margin_P = right[column].loc[pairs.item].to_numpy() - candidates[column].loc[places]
        recorded[column.removeprefix("score_")] = Recorded(
            groups, pairs.item.to_numpy(), margin_P.to_numpy(), pairs.verdict.to_numpy()
        )
    return recorded


def curve(margin_P: Array, decided_P: Array, rank_P: Array | Ints) -> Array:
    """Returns the accuracy at each of SHARES, `[F]`.

    Args:
        margin_P: decides where the judge is not asked.
        decided_P: decides where it is.
        rank_P: order in which pairs are asked about.
    """
    asked = [rank_P < round(share * len(margin_P)) for share in SHARES]
    return np.array([wins(np.where(a, decided_P, margin_P)).mean() for a in asked])


def one_split(recorded: Recorded, seed: int) -> dict[str, Any]:
    """Returns accuracies and curves on one half of the items, fitted on the other."""
    rng = np.random.default_rng(seed)
    items = rng.permutation(np.array(sorted(recorded.groups)))
    fitting, judging = recorded.of(items[: len(items) // 2]), recorded.of(items[len(items) // 2 :])
    spread = pooled_spread(list(fitting.groups.values()))
    z_P, z = fitting.margins_in_units(spread), judging.margins_in_units(spread)
    margin, verdict = judging.margin_P, judging.verdict_P
    replaced = np.nan_to_num(verdict)
    fit = fit_escalation(z_P, fitting.verdict_P, fitting.item_P, spread, SHARES[0])
    fused = fused_log_odds(z, verdict, fit.fused_slope, fit.verdict)
    thresholds = [threshold(z_P, fit.slope, share) for share in SHARES]
    asked = [fit.slope * np.abs(z) <= limit for limit in thresholds]
    return {
        "model": wins(margin).mean(),
        "judge": wins(replaced).mean(),
        "random": curve(margin, replaced, rng.permutation(len(margin))),
        "plain": curve(margin, replaced, rank_by_size(margin)),
        "fused": curve(margin, fused, rank_by_size(z)),
        "frozen": np.array([wins(np.where(a, fused, margin)).mean() for a in asked]),
        "frozen_calls": np.array([a.mean() for a in asked]),
        "told": fit.is_informative,
        "area": fit.area,
    }


def summary(recorded: Recorded, splits: int) -> dict[str, Any]:
    """Returns the means over the splits, and shares of the judge's gain."""
    rows = [one_split(recorded, seed) for seed in range(splits)]
    means = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
    gain = means["judge"] - means["model"]
    figures: dict[str, Any] = {"splits": splits, "told": int(sum(row["told"] for row in rows))}
    figures |= {name: float(means[name]) for name in ("model", "judge", "area")}
    for name in ("random", "plain", "fused", "frozen"):
        figures[name] = dict(zip(map(str, SHARES), map(float, means[name]), strict=True))
        shares = (means[name] - means["model"]) / gain
        figures[f"{name}_share"] = dict(zip(map(str, SHARES), map(float, shares), strict=True))
    calls = map(float, means["frozen_calls"])
    figures["frozen_calls"] = dict(zip(map(str, SHARES), calls, strict=True))
    by_split = [(row["fused"] - row["model"]) / (row["judge"] - row["model"]) for row in rows]
    figures["fused_share_by_split"] = [
        row[SHARES.index(0.4)] for row in np.array(by_split).tolist()
    ]
    return figures


def main(options: Options) -> None:
    """Judges the rules and prints a table for RESULTS."""
    recorded = read_recorded(options.scores, options.verdicts, options.judge)
    figures: dict[str, Any] = {}
    print(f"| model | alone | {options.judge} | calls | random | plain | fused | frozen | told |")
    print("| --- " * 9 + "|")
    for name, pairs in recorded.items():
        figures[name] = figure = summary(pairs, options.splits)
        for share in ("0.2", "0.4", "1.0"):
            cells = [
                f"{figure[rule][share]:.3f} ({figure[f'{rule}_share'][share]:.2f})"
                for rule in ("random", "plain", "fused", "frozen")
            ]
            cells[-1] += f" at {figure['frozen_calls'][share]:.2f}"
            print(
                f"| {name} | {figure['model']:.3f} | {figure['judge']:.3f} | {share} | "
                f"{' | '.join(cells)} | {figure['told']}/{figure['splits']} |"
            )
    write_figures(options.json, figures)


if __name__ == "__main__":
    run(main, Options)
