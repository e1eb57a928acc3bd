"""Structural checks of preference pairs: what can be wrong with a pair without asking any model.

Every finding names its row, the check, its evidence in numbers and ids (never in the row's texts),
and an action that is proposed; nothing is changed here. What ingestion refuses (an empty or missing
response, identical responses, a prompt that does not end in a user's turn) is in its quarantine.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Action: TypeAlias = Literal["drop", "flip", "soften", "look"]
ACTIONS: tuple[Action, ...] = ("drop", "flip", "soften", "look")
"""Proposals, the strongest first: of several on one row the strongest counts."""

NEAR_IDENTICAL = 0.9
"""Share of common words (Jaccard) from which on two responses hardly differ."""
REPETITION = 0.3
"""Share of 4-grams that occurred before from which on a response repeats itself."""
FEWEST_GRAMS = 20
"""4-grams of a response below which their repetition says nothing."""
SHORTEST_ECHO = 40
"""Characters of a prompt below which a response may well hold it."""
TAILS = (1.0, 99.0)
"""Percentiles of the length ratio beyond which a pair is named."""
FEWEST_FOR_TAILS = 200
"""Pairs below which percentiles of the length ratio say nothing."""
WORD = re.compile(r"\w+")
REFUSAL = re.compile(
    r"\b(i (cannot|can't|can not|won't|will not|am unable to|'m unable to|am not able to"
    r"|'m not able to)|i'm (sorry|afraid)|i am (sorry|afraid)|as an ai)\b"
)
"""Beginning of a refusal, in lower case with plain apostrophes."""
OPENING = 200
"""Characters of a response in which a refusal stands."""
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Something about a pair that a person, or a rule, should look at."""

    row_id: str
    check: str
    """Name of the check, in snake case."""
    evidence: str
    """Numbers, sides and row ids behind it; no text of the row."""
    action: Action
    """Proposal: leave the pair out, swap its label, lower its weight, or only look at it."""


def structure_findings(rows: Iterable[Mapping[str, Any]]) -> list[AuditFinding]:
    """Returns the findings of all structural checks.

    Args:
        rows: canonical pairs (`panoply.data.schema.PAIRS`), each with its `row_id`.
    """
    findings: list[AuditFinding] = []
    seen: dict[tuple[str, str], list[_Judged]] = {}
    ratios: list[tuple[str, float]] = []
    for row in rows:
        findings += _text_findings(row)
        first, second = sorted((row["chosen_id"], row["rejected_id"]))
        judged = _Judged(row["row_id"], row["chosen_id"], f"{row['source']}/{row['subset'] or ''}")
        seen.setdefault((first, second), []).append(judged)
        ratio = math.log(row["chosen_length"] / row["rejected_length"])
        ratios.append((row["row_id"], ratio))
    for judgements in seen.values():
        if len(judgements) > 1:
            findings += _repeats(judgements)
            findings += _contradictions(judgements)
    findings += _length_findings(ratios)
    return findings


# One pair by itself


def _text_findings(row: Mapping[str, Any]) -> Iterator[AuditFinding]:
    chosen, rejected = row["chosen"], row["rejected"]
    similarity = jaccard(chosen, rejected)
    if similarity >= NEAR_IDENTICAL:
        evidence = f"{similarity:.2f} of the words are common"
        yield AuditFinding(row["row_id"], "near_identical", evidence, "look")
    if is_refusal(chosen) and is_refusal(rejected):
        yield AuditFinding(row["row_id"], "both_refuse", "both responses", "look")
    prompt = " ".join(row["prompt"][-1]["content"].split())
    if len(prompt) >= SHORTEST_ECHO:
        sides = [side for side in SIDES if prompt in " ".join(row[side].split())]
        if sides:
            evidence = f"in the {' and the '.join(sides)} response"
            yield AuditFinding(row["row_id"], "prompt_in_response", evidence, "look")
    shares = {side: repeated_share(row[side]) for side in SIDES}
    if max(shares.values()) >= REPETITION:
        evidence = ", ".join(f"{side} {share:.2f}" for side, share in shares.items())
        yield AuditFinding(row["row_id"], "repetition", f"repeated 4-grams: {evidence}", "look")


def jaccard(first: str, second: str) -> float:
    """Returns |A & B| / |A | B| of the sets of words of two texts; 1 where neither has a word."""
    words = [set(WORD.findall(text.casefold())) for text in (first, second)]
    union = words[0] | words[1]
    return len(words[0] & words[1]) / len(union) if union else 1.0


def repeated_share(text: str) -> float:
    """Returns the share of a text's 4-grams of words that occurred before in it; 0 if it is short.

    1 - (distinct 4-grams) / (4-grams), for at least FEWEST_GRAMS of them.
    """
    words = text.casefold().split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) >= FEWEST_GRAMS else 0.0


def is_refusal(response: str) -> bool:
    """Returns whether a response begins by refusing, in English words that models use for it."""
    opening = response[:OPENING].casefold().replace("\u2019", "'")
    return REFUSAL.search(opening) is not None


# Several pairs of the same texts


@dataclass(frozen=True, slots=True)
class _Judged:
    """A label on two responses."""

    row_id: str
    chosen_id: str
    place: str
    """Source and subset, whose raters are taken to share a standard."""


def _repeats(judgements: Sequence[_Judged]) -> Iterator[AuditFinding]:
    """Yields rows that repeat an earlier label; inside one place the later row is dropped."""
    first: dict[str, _Judged] = {}
    inside: dict[tuple[str, str], _Judged] = {}
    for judged in judgements:
        if earlier := inside.get((judged.chosen_id, judged.place)):
            evidence = f"the same pair as {earlier.row_id}"
            yield AuditFinding(judged.row_id, "repeated", evidence, "drop")
        elif earlier := first.get(judged.chosen_id):
            evidence = f"the same pair as {earlier.row_id} of {earlier.place}"
            yield AuditFinding(judged.row_id, "repeated_across_subsets", evidence, "look")
        first.setdefault(judged.chosen_id, judged)
        inside.setdefault((judged.chosen_id, judged.place), judged)


def _contradictions(judgements: Sequence[_Judged]) -> Iterator[AuditFinding]:
    """Yields rows whose label another row reverses.

    Inside one source and subset one of the two is wrong, and nothing says which: both are dropped.
    Across them raters may differ by design, which is no fault.
    """
    for judged in judgements:
        opposite = [other for other in judgements if other.chosen_id != judged.chosen_id]
        inside = [other for other in opposite if other.place == judged.place]
        if inside:
            evidence = f"the opposite label of {inside[0].row_id}"
            yield AuditFinding(judged.row_id, "contradiction", evidence, "drop")
        elif opposite:
            evidence = f"the opposite label of {opposite[0].row_id} of {opposite[0].place}"
            yield AuditFinding(judged.row_id, "contradiction_across_subsets", evidence, "look")


def _length_findings(ratios: Sequence[tuple[str, float]]) -> Iterator[AuditFinding]:
    """Yields pairs whose log ratio of lengths lies beyond the percentiles TAILS of all pairs."""
    if len(ratios) < FEWEST_FOR_TAILS:
        return
    low, high = np.percentile([ratio for _, ratio in ratios], TAILS)
    for row_id, ratio in ratios:
        if not low <= ratio <= high:
            evidence = f"the chosen response is {math.exp(ratio):.2f} times as long"
            yield AuditFinding(row_id, "length_ratio", evidence, "look")


def proposed(findings: Iterable[AuditFinding]) -> dict[str, Action]:
    """Returns the strongest action that is proposed for each row."""
    actions: dict[str, Action] = {}
    for finding in findings:
        both: tuple[Action, Action] = (actions.get(finding.row_id, "look"), finding.action)
        actions[finding.row_id] = min(both, key=ACTIONS.index)
    return actions


def counts_by_check(findings: Iterable[AuditFinding]) -> dict[str, dict[str, int]]:
    """Returns by check how many rows each action is proposed for, most frequent check first."""
    by_check: dict[str, Counter[str]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, Counter())[finding.action] += 1
    order = sorted(by_check, key=lambda check: -by_check[check].total())
    return {check: dict(by_check[check]) for check in order}
