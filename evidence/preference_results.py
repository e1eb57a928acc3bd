"""What the preference experiments found: metrics of models, paired differences with intervals.

Legend: `P` test pairs, of one seed or of all; `M` terms to be summed, `B` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.special import expit

from panoply.data.tables import PairTable
from panoply.measure.calibration import NUM_BINS
from panoply.measure.intervals import paired_interval, percentiles, resampled_sums
from panoply.types import Array, Ints

OUTLYING = 3.0
"""Margins beyond it are counted: over-rewarded pairs, in MORE's words."""
Interval: TypeAlias = dict[str, float | list[float]]


class Seed:
    """Models of one seed, on the same test pairs."""

    def __init__(self, table: PairTable, rows: Ints, parts: Mapping[str, Sequence[str]]) -> None:
        self.table, self.rows, self.parts = table, rows, parts
        """`parts`: the sources that are reported together, by the name before their metrics."""
        self.figures: dict[str, dict[str, float]] = {}
        self.margins: dict[str, Array] = {}
        self.scales: dict[str, float] = {}
        self.compared: list[tuple[str, str]] = []
        """Pairs of models whose difference is wanted."""

    def add(
        self, name: str, margin_P: Array, scale: float, told: Mapping[str, float] | None = None
    ) -> None:
        """Takes a model's margins on the test pairs and its factor to log odds."""
        self.margins[name], self.scales[name] = margin_P, scale
        self.figures[name] = {}
        for part, sources in self.parts.items():
            found = self._report(margin_P, scale, sources)
            self.figures[name] |= {f"{part}{key}": value for key, value in found.items()}
        self.figures[name] |= told or {}

    def _report(self, margin_P: Array, scale: float, sources: Sequence[str]) -> dict[str, float]:
        """Returns metrics, the mean of the sources', raw and with a factor to log odds."""
        from panoply.measure.pair_report import report_pairs

        whole_P = np.full(len(self.table.source_P), np.nan)
        whole_P[self.rows] = margin_P
        rows = self.rows[np.isin(self.table.source_P[self.rows], sources)]
        margins, scales = {"raw": whole_P, "fitted": whole_P}, {"raw": 1.0, "fitted": scale}
        found = report_pairs(margins, self.table, rows, scales)
        raw, fitted = found["raw"], found["fitted"]
        return {
            "balanced": raw["macro"]["accuracy_length_balanced"],
            "accuracy": raw["macro"]["accuracy"],
            "log_loss": raw["macro"]["log_loss"],
            "log_loss_fitted": fitted["macro"]["log_loss"],
            "ece": raw["ece"],
            "ece_floor": raw["ece_floor"],
            "ece_fitted": fitted["ece"],
            "ece_fitted_floor": fitted["ece_floor"],
            "margin": float(np.mean(np.abs(whole_P[rows]))),
            "outliers": float(np.mean(np.abs(whole_P[rows]) > OUTLYING)),
            "n": float(len(rows)),
            **{
                f"balanced.{source}": own["accuracy_length_balanced"]
                for source, own in raw["per_source"].items()
            },
        }


def difference(seeds: Sequence[Seed], a: str, b: str, part: str) -> dict[str, Interval]:
    """Returns how much model a is above model b, the mean over seeds, with 95 % intervals.

    A prompt is drawn with all its pairs in all seeds. The intervals say what other test pairs would
    change; other seeds would change more.
    """
    given = [np.isin(s.table.source_P[s.rows], s.parts[part]) for s in seeds]
    rows = [s.rows[at] for s, at in zip(seeds, given, strict=True)]
    seed_P = np.repeat(np.arange(len(seeds)), [len(r) for r in rows])
    key_P = _joined(lambda i: seeds[i].table.split.key_N[rows[i]], len(seeds))
    source_P = _joined(lambda i: seeds[i].table.source_P[rows[i]], len(seeds))
    gap_P = _joined(lambda i: seeds[i].table.gap_P[rows[i]], len(seeds))
    cell_P = np.array([f"{seed} {name}" for seed, name in zip(seed_P, source_P, strict=True)])
    raw = {n: _joined(lambda i, n=n: seeds[i].margins[n][given[i]], len(seeds)) for n in (a, b)}
    scale = {n: np.array([seed.scales[n] for seed in seeds])[seed_P] for n in (a, b)}
    found = {"balanced": paired_interval(raw[a], raw[b], gap_P, cell_P, key_P)}
    for suffix, factor in (("", {a: 1.0, b: 1.0}), ("_fitted", scale)):
        odds_a, odds_b = raw[a] * factor[a], raw[b] * factor[b]
        lost_P = np.logaddexp(0, -odds_a) - np.logaddexp(0, -odds_b)
        found[f"log_loss{suffix}"] = mean_interval(lost_P, cell_P, key_P)
        found[f"ece{suffix}"] = ece_interval(odds_a, odds_b, seed_P, key_P)
    return found


def _joined(column: Callable[[int], Any], count: int) -> Any:
    return np.concatenate([column(i) for i in range(count)])


def mean_interval(values_P: Array, cell_P: Any, key_P: Any) -> Interval:
    """Returns `value` and `ci95` of the mean over cells of the mean of the values in a cell."""
    own = np.unique(cell_P)[:, None] == cell_P
    terms = np.column_stack([*(own * values_P), *own.astype(np.float64)])

    def statistic(sums_BM: Array) -> Array:
        total, count = np.split(sums_BM, 2, axis=1)
        return np.nanmean(np.divide(total, count, where=count > 0, out=total * np.nan), axis=1)

    return _interval(terms, statistic, key_P)


def ece_interval(odds_a_P: Array, odds_b_P: Array, seed_P: Ints, key_P: Any) -> Interval:
    """Returns `value` and `ci95` of ECE(a) - ECE(b), the mean over seeds.

    A draw of a calibrated model has an ECE above 0, so with few pairs the interval of a difference
    from a well calibrated model lies too near zero.
    """
    count = np.unique(seed_P)[:, None] == seed_P
    terms = [count.T.astype(np.float64)]
    for odds_P in (odds_a_P, odds_b_P):
        sure_P = expit(np.abs(odds_P))
        bin_P = np.minimum((sure_P - 0.5) * 2 * NUM_BINS, NUM_BINS - 1).astype(np.int64)
        excess_P = (np.sign(odds_P) + 1) / 2 - sure_P
        own = np.arange(NUM_BINS)[:, None] == bin_P
        terms.append(np.column_stack([(of_seed & own).T * excess_P[:, None] for of_seed in count]))

    def statistic(sums_BM: Array) -> Array:
        size = len(count)
        a, b = np.split(np.abs(sums_BM[:, size:]), 2, axis=1)
        apart = (a - b).reshape(len(sums_BM), size, NUM_BINS).sum(2)
        return (apart / sums_BM[:, :size]).mean(1)

    return _interval(np.column_stack(terms), statistic, key_P)


def _interval(terms_PM: Array, statistic: Callable[[Array], Array], key_P: Any) -> Interval:
    value = float(statistic(terms_PM.sum(0)[None])[0])
    return {"value": value, "ci95": percentiles(statistic(resampled_sums(terms_PM, key_P)))}
