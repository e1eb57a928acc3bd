"""Reports the labels of audited pairs that voters contradict, and numbers about the voters.

Arrays hold the audited pairs first and the trusted ones behind them. A margin is NaN where a voter
has no vote: its score failed, or it was trained on the prompt.

Legend: `K` voters, `N` all pairs, `P` audited pairs, the first of the N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from panoply.data.audit import AuditFinding
from panoply.measure.metrics import accuracy
from panoply.measure.votes import (
    Votes,
    cleaned_signs,
    count_votes,
    detection,
    false_shares,
    held_out_scaled,
    label_free_scale,
    lowest,
    separation,
)
from panoply.types import Array, Bools, Ints

DISSENT = 2.0
"""Deviation between voters, in units of a median margin, from which on a pair is looked at."""


@dataclass(frozen=True)
class Electorate:
    """Voters, their margins, and the rules by which a label is suspect."""

    margins: Mapping[str, Array]
    """Margins `[N]` by voter, in its own unit."""
    num_audited: int
    """P."""
    trusted: Ints
    """Rows of the trusted pairs that fix scales and thresholds; empty where there are none."""
    fold_N: Ints
    """Fold of each prompt: without trusted pairs a margin is scaled by those of other folds."""
    max_false: float
    """Largest expected share of right labels among those that are found."""
    flip_below: float
    """Mean margin against a label from which on it is found where there are no trusted pairs."""

    @cached_property
    def scaled_KN(self) -> Array:
        """Margins in units of the voter's median margin."""
        return np.stack([self._scaled(margin_N) for margin_N in self.margins.values()])

    @cached_property
    def votes(self) -> Votes:
        """Votes on all pairs."""
        return count_votes(self.scaled_KN)

    @cached_property
    def false_share_P(self) -> Array:
        """Expected share of right labels among pairs as suspect or more; NaN: it is not known."""
        statistic_N = self.votes.statistic_P
        if not len(self.trusted):
            return np.full(self.num_audited, np.nan)
        return false_shares(statistic_N[: self.num_audited], statistic_N[self.trusted])

    @cached_property
    def found_P(self) -> Bools:
        """Labels that are found to be wrong."""
        if len(self.trusted):
            return self.false_share_P <= self.max_false
        return self.votes.statistic_P[: self.num_audited] <= -self.flip_below

    @cached_property
    def signs_P(self) -> Array:
        """1 where a label stays, -1 where it is swapped, 0 where its pair is left out."""
        found_N = np.zeros(self.scaled_KN.shape[1], np.bool_)
        found_N[: self.num_audited] = self.found_P
        return cleaned_signs(self.votes, found_N)[: self.num_audited]

    def without(self, name: str) -> Electorate:
        """Returns the other voters."""
        others = {voter: margin for voter, margin in self.margins.items() if voter != name}
        return replace(self, margins=others)

    def _scaled(self, margin_N: Array) -> Array:
        if len(self.trusted):
            return margin_N / label_free_scale(margin_N[self.trusted])
        return held_out_scaled(margin_N, self.fold_N)


def vote_findings(
    electorate: Electorate, row_ids: Sequence[str], unsure_within: float
) -> list[AuditFinding]:
    """Returns a finding for each suspect, unsure or disputed label, the lowest mean margin first.

    Args:
        electorate: the voters.
        row_ids: `[P]` of the audited pairs.
        unsure_within: largest mean margin of an unsure label, of either sign.
    """
    votes, findings = electorate.votes, list[AuditFinding]()
    mean_P = votes.mean_P[: electorate.num_audited]
    order: list[int] = np.argsort(mean_P, kind="stable").tolist()
    for row in order:
        if not votes.num_P[row]:
            continue
        row_id = row_ids[row]
        evidence = _margins_of(electorate, row)
        if electorate.found_P[row]:
            share = electorate.false_share_P[row]
            if not np.isnan(share):
                evidence += f"; expected share of right labels {share:.3f}"
            action = "flip" if electorate.signs_P[row] < 0 else "drop"
            findings.append(AuditFinding(row_id, "votes_against", evidence, action))
        elif abs(votes.mean_P[row]) <= unsure_within:
            findings.append(AuditFinding(row_id, "votes_unsure", evidence, "soften"))
        elif votes.std_P[row] >= DISSENT:
            findings.append(AuditFinding(row_id, "votes_disputed", evidence, "look"))
    return findings


def _margins_of(electorate: Electorate, row: int) -> str:
    margins = [
        f"{name} {margin:+.2f}"
        for name, margin in zip(electorate.margins, electorate.scaled_KN[:, row], strict=True)
        if not np.isnan(margin)
    ]
    return f"{', '.join(margins)}; mean {electorate.votes.mean_P[row]:+.2f}"


def voter_report(electorate: Electorate, tested: Ints) -> dict[str, dict[str, float]]:
    """Returns by voter its votes and accuracy; it is judged on labels that it had no part in.

    `accuracy` is on the labels as they are, `accuracy_cleaned` on those that the other voters
    leave, with what they swap swapped; `accuracy_trusted` on trusted pairs that set nothing.

    Args:
        electorate: the voters.
        tested: rows of the trusted pairs that fix neither scales nor thresholds.
    """
    num, report = electorate.num_audited, dict[str, dict[str, float]]()
    for name, margin_N in electorate.margins.items():
        margin_P = margin_N[:num]
        cleaned = float("nan")
        if len(electorate.margins) > 1:
            signs_P = electorate.without(name).signs_P
            cleaned = accuracy(np.where(signs_P == 0, np.nan, margin_P * signs_P))
        report[name] = {
            "votes": float((~np.isnan(margin_P)).sum()),
            "accuracy": accuracy(margin_P),
            "accuracy_cleaned": cleaned,
            "accuracy_trusted": accuracy(margin_N[tested]),
        }
    return report


def planted_report(
    electorate: Electorate,
    flipped_P: Bools,
    gap_P: Ints,
    fitted_margin_P: Array | None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns what of the labels that were swapped on purpose is found, beside plain controls.

    Each control names as many pairs as the votes do: random ones, those whose chosen response is
    the shortest beside the other, those that of several voters the most accurate likes least, and
    those that a head fitted to all labels likes least. `at_budget` is the share of swapped labels
    among as many pairs as were swapped, and `auc` the share of pairs of a swapped and another label
    that the statistic orders rightly.

    Args:
        electorate: the voters.
        flipped_P: labels that were swapped.
        gap_P: length of the chosen minus length of the rejected response.
        fitted_margin_P: margins of a head that has seen the labels; None where no head votes.
        seed: of the random pairs.
    """
    num_found, num = int(electorate.found_P.sum()), electorate.num_audited
    statistics: dict[str, Array] = {
        "random": np.random.default_rng(seed).random(num),
        "length": gap_P.astype(np.float64),
    }
    alone = {name: margin_N[:num] for name, margin_N in electorate.margins.items()}
    if len(alone) > 1:
        best = max(alone, key=lambda name: accuracy(alone[name]))
        statistics[f"best voter alone: {best}"] = alone[best]
    if fitted_margin_P is not None:
        statistics["head without folds"] = fitted_margin_P
    named = {"votes": (electorate.found_P, electorate.votes.mean_P[:num])}
    for name, statistic_P in statistics.items():
        named[name] = (lowest(statistic_P, num_found), statistic_P)
    rows: dict[str, Any] = {}
    for name, (found_P, statistic_P) in named.items():
        at_budget = detection(lowest(statistic_P, int(flipped_P.sum())), flipped_P)["recall"]
        auc = separation(statistic_P, flipped_P)
        rows[name] = {**detection(found_P, flipped_P), "at_budget": at_budget, "auc": auc}
    return {"flipped": int(flipped_P.sum()), "rows": rows}
