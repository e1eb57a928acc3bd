"""Report of scorers on groups of responses: who ranks whom, what each chooses and would reward.

Legend: `n` responses of a group, `K` scorers, `P` parts of a scorer, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from panoply.measure.groups import (
    agreement,
    choice,
    chosen_value,
    correlation,
    gdpo_advantages,
    grpo_advantages,
    has_spread,
    opposite_share,
    same_choice,
)
from panoply.measure.intervals import mean_interval
from panoply.types import Array

Numbers: TypeAlias = dict[str, Any]
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """Scores of the same responses by several scorers."""

    names: tuple[str, ...]
    """Scorers, in the order of the rows of `scores`."""
    scores: Sequence[Array]
    """Scores `[K, n]` of each group, NaN where missing."""
    parts: Mapping[str, Sequence[Array]]
    """Parts `[P, n]` of the scores of each group, by the name of a scorer that has some."""
    lengths: Sequence[Array]
    """Characters `[n]` of the responses of each group."""
    batches: Sequence[str]
    """Training step of each group; empty where it is not known."""
    truth: str = ""
    """Scorer whose scores choices are judged by; empty: there is none."""


@dataclass(frozen=True, slots=True)
class GroupResults:
    """Holds what each scorer makes of each group."""

    choices: Sequence[Array]
    """Probability `[K, n]` with which each response of a group is chosen."""
    grpo: Sequence[Array]
    """Advantages `[K, n]` of each group."""
    gdpo: Mapping[str, Sequence[Array]]
    """Advantages `[n]` of each group with every part normalized by itself, by scorer."""


def results_of(groups: ScoredGroups) -> GroupResults:
    """Returns choices and advantages of every scorer."""
    return GroupResults(
        [np.array(list(map(choice, scores))) for scores in groups.scores],
        [np.array(list(map(grpo_advantages, scores))) for scores in groups.scores],
        {name: gdpo_advantages(parts, groups.batches) for name, parts in groups.parts.items()},
    )


def group_report(groups: ScoredGroups, results: GroupResults) -> Numbers:
    """Returns the numbers of the report, by name of a scorer or of two."""
    return {
        "num_groups": len(groups.scores),
        "num_responses": sum(scores.shape[1] for scores in groups.scores),
        "truth": groups.truth,
        "scorers": _coverage(groups),
        **_agreement(groups),
        "choices": _choices(groups, results),
        "same_choice": _same_choice(groups, results),
        **_advantages(groups, results),
    }


def _coverage(groups: ScoredGroups) -> Numbers:
    """Returns what each scorer scored, and in how many groups its scores are all equal."""
    coverage: Numbers = {}
    for k, name in enumerate(groups.names):
        scores = np.concatenate([scores[k] for scores in groups.scores])
        missing = int(np.isnan(scores).sum())
        flat = sum(not has_spread(scores[k]) for scores in groups.scores)
        coverage[name] = {
            "scored": len(scores) - missing,
            "missing": missing,
            "flat_groups": flat,
            "flat_share": flat / len(groups.scores),
        }
    return coverage


def _agreement(groups: ScoredGroups) -> Numbers:
    """Returns tau of each two scorers within prompts, and the share of pairs ordered alike."""
    each = [agreement(scores) for scores in groups.scores]
    tau_GKK = np.array([group.tau_KK for group in each])
    alike = np.sum([group.alike_KK for group in each], axis=0)
    ordered = np.sum([group.ordered_KK for group in each], axis=0)
    tau: Numbers = {}
    pairs: Numbers = {}
    for a, first in enumerate(groups.names):
        tau[first], pairs[first] = {}, {}
        for b, second in enumerate(groups.names):
            if a == b:
                continue
            num = int(ordered[a, b])
            value = float(alike[a, b] / num) if num else NAN
            tau[first][second] = _mean(tau_GKK[:, a, b])
            pairs[first][second] = {"value": value, "pairs": num}
    return {"tau": tau, "alike": pairs}


def _choices(groups: ScoredGroups, results: GroupResults) -> Numbers:
    """Returns what the choices of each scorer are worth by `truth`, beside plain rules.

    The plain rules are the longest response, one at random, and the one that `truth` chooses. Each
    scorer is compared with chance on the groups in which its choice has a value.
    """
    number = groups.names.index(groups.truth) if groups.truth else None
    values = [
        np.full(scores.shape[1], NAN) if number is None else scores[number]
        for scores in groups.scores
    ]
    by_rule: dict[str, list[Array]] = {}
    for k, name in enumerate(groups.names):
        by_rule[name] = [choices[k] for choices in results.choices]
    by_rule["longest"] = [choice(lengths) for lengths in groups.lengths]
    by_rule["random"] = [np.full(len(value), 1 / len(value)) for value in values]
    rows: Numbers = {}
    for name, choices in by_rule.items():
        pairs = list(zip(choices, values, strict=True))
        worth = np.array([chosen_value(p, value) for p, value in pairs])
        chance = np.array([value.mean() for value in values])
        sizes = zip(choices, groups.lengths, strict=True)
        length = np.array([chosen_value(p, length) for p, length in sizes])
        rows[name] = {
            "reward": _mean(worth)["value"],
            "above_random": _mean(worth - chance),
            "length": _mean(length)["value"],
        }
    return rows


def _same_choice(groups: ScoredGroups, results: GroupResults) -> Numbers:
    """Returns how often each two scorers choose the same response."""
    same_GKK = np.array([same_choice(choices) for choices in results.choices])
    rows: Numbers = {}
    for a, first in enumerate(groups.names):
        others = [(b, second) for b, second in enumerate(groups.names) if b != a]
        rows[first] = {second: _mean(same_GKK[:, a, b])["value"] for b, second in others}
    return rows


def _advantages(groups: ScoredGroups, results: GroupResults) -> Numbers:
    """Returns how alike the advantages are by two scorers, and by GRPO and GDPO of one."""
    grpo_KN = np.concatenate(results.grpo, axis=1)
    correlations: Numbers = {}
    opposite: Numbers = {}
    decoupled: Numbers = {}
    for a, first in enumerate(groups.names):
        correlations[first], opposite[first] = {}, {}
        for b, second in enumerate(groups.names):
            if a != b:
                correlations[first][second] = correlation(grpo_KN[a], grpo_KN[b])
                opposite[first][second] = opposite_share(grpo_KN[a], grpo_KN[b])
        if first not in results.gdpo:
            continue
        gdpo_N = np.concatenate(results.gdpo[first])
        moved = [any(map(has_spread, part)) for part in groups.parts[first]]
        flat = [not has_spread(scores[a]) for scores in groups.scores]
        decoupled[first] = {
            "parts": len(groups.parts[first][0]),
            "correlation": correlation(grpo_KN[a], gdpo_N),
            "opposite": opposite_share(grpo_KN[a], gdpo_N),
            "revived_groups": int(np.sum(np.array(moved) & np.array(flat))),
        }
    return {"advantages": correlations, "opposite": opposite, "gdpo": decoupled}


def _mean(values_G: Array) -> Numbers:
    """Returns the mean over the groups in which a value is defined, and its interval."""
    defined = values_G[np.isfinite(values_G)]
    value = float(defined.mean()) if len(defined) else NAN
    return {"value": value, "ci95": mean_interval(values_G), "groups": len(defined)}
