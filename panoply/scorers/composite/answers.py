"""Scores of parts as one score: details under the parts' names, and errors that name a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from panoply.config.composite import LengthPenalty
from panoply.types import Array
from panoply.wire.request import (
    Details,
    Item,
    JudgeVerdict,
    Score,
    Tokens,
    abbreviate,
    scored,
    sigmoid,
)

ItemScores: TypeAlias = tuple[Score, ...]
PartScores: TypeAlias = list[Score | None]
"""Scores of a part by response; None where it was not asked."""


def responses_of(item: Item, places: Sequence[int]) -> Item:
    """Returns an item with some of its responses alone."""
    if isinstance(item, Tokens):
        return Tokens(tuple(item.responses[place] for place in places))
    return replace(item, responses=tuple(item.responses[place] for place in places))


def at_places(score: Score, places: Sequence[int]) -> Score:
    """Returns a score of some responses to a prompt, its verdicts with their places among all.

    Args:
        score: of a part that was asked about some responses.
        places: of those responses, in their order.
    """
    if not score.details.verdicts:
        return score
    verdicts: list[JudgeVerdict] = []
    for verdict in score.details.verdicts:
        shown = tuple(places[place] for place in verdict.shown)
        verdicts.append(replace(verdict, shown=shown))
    return replace(score, details=replace(score.details, verdicts=tuple(verdicts)))


def composite_score(
    value: float,
    by_part: Mapping[str, Score | None],
    more: Mapping[str, float] | None = None,
    evidence: Sequence[Score] = (),
) -> Score:
    """Returns a composite's number with its parts' as details.

    Args:
        value: the number; an error where it is not finite.
        by_part: score of each part; None where it was not asked.
        more: further numbers.
        evidence: further scores whose verdicts and costs count.
    """
    objectives: dict[str, float] = {}
    num_tokens = num_cut = 0
    for name, score in by_part.items():
        if score is None or score.score is None:
            continue
        objectives[name] = score.score
        for objective, rating in score.details.objectives.items():
            objectives[f"{name}.{objective}"] = rating
        num_tokens, num_cut = max(num_tokens, score.num_tokens), max(num_cut, score.num_cut)
    objectives |= more or {}
    result = scored(value, objectives=objectives, num_tokens=num_tokens, num_cut=num_cut)
    verdicts: list[JudgeVerdict] = []
    usage: dict[str, float] = {}
    for score in (*by_part.values(), *evidence):
        if score is not None:
            verdicts += score.details.verdicts
            for name, number in score.details.usage.items():
                usage[name] = usage.get(name, 0.0) + number
    if not (verdicts or usage):
        return result
    details = replace(result.details, verdicts=tuple(verdicts), usage=usage)
    return replace(result, details=details)


def failure(by_part: Mapping[str, Score | None]) -> Score:
    """Returns the error of a response that lacks a score, with the parts that gave none.

    It may pass where that of every such part may.
    """
    failed = {name: score for name, score in by_part.items() if score is not None and score.error}
    if not failed:
        why = "too few parts have scored all responses to this prompt, see those that failed"
        return Score(error=why)
    reasons = abbreviate(f"part {name!r}: {score.error}" for name, score in failed.items())
    return Score(error=reasons, transient=all(score.transient for score in failed.values()))


def numbers_of(scores: PartScores) -> Array:
    """Returns scores as numbers, NaN where one is missing or was not asked for."""
    return np.array(
        [np.nan if s is None or s.score is None else s.score for s in scores], np.float64
    )


def scores_of(values_n: Array, answers: Mapping[str, PartScores]) -> ItemScores:
    """Returns each response's value with its parts, or which part failed where it has none."""
    results: list[Score] = []
    for place, value in enumerate(values_n.tolist()):
        by_name = {name: scores[place] for name, scores in answers.items()}
        results.append(failure(by_name) if np.isnan(value) else composite_score(value, by_name))
    return tuple(results)


def less_length(price: LengthPenalty, item: Item, scores: ItemScores) -> ItemScores:
    """Returns scores less the price of the length of their responses."""
    if isinstance(item, Tokens):
        why = "token ids have no characters, for which a composite's `length` takes a price"
        return tuple(score if score.error else Score(error=why) for score in scores)
    return tuple(
        score
        if score.score is None
        else replace(score, score=score.score - price.of(len(response)))
        for score, response in zip(scores, item.responses, strict=True)
    )


def preference(a: Score, b: Score, temperature: float) -> Score:
    """Returns P(a > b) = sigma((s_a - s_b) / T) of two responses, or the error of one."""
    if a.score is None or b.score is None:
        return replace(a if a.score is None else b, details=Details())
    num_tokens, num_cut = a.num_tokens + b.num_tokens, a.num_cut + b.num_cut
    margin = (a.score - b.score) / temperature
    return scored(sigmoid(margin), num_tokens=num_tokens, num_cut=num_cut)
