"""Findings about a composite: whether each part answers, and what comes of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

from panoply.measure.conformance import Finding
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.scorers.judge.doctor import EXAMPLES
from panoply.scorers.where import Scorer
from panoply.wire.request import Chat, Score, abbreviate

T = TypeVar("T")


def examine_composite(open_composite: Callable[[], Scorer]) -> list[Finding]:
    """Asks each part, then the composite, about examples, and returns what was found.

    Args:
        open_composite: opens it in the event loop that asks.

    Raises:
        ValueError, OSError: it cannot be opened.
    """

    async def examine() -> list[Finding]:
        scorer = open_composite()
        assert isinstance(scorer, CompositeScorer)
        items = example_items()
        findings = [_fit(scorer)]
        for name, part in scorer.parts.items():
            findings.append(responses_scored(f"part {name}", await part.score(items)))
        rows = await scorer.score(items)
        return [*findings, responses_scored("composite", rows), _sense(rows)]

    return asyncio.run(examine())


def example_items() -> list[Chat]:
    """Returns questions with a good and a poor response each."""
    items: list[Chat] = []
    for number, example in enumerate(EXAMPLES):
        turn = {"role": "user", "content": example.question}
        # By turns the good one is first: a scorer may like a place.
        responses = _by_turns(number, (example.good, example.poor))
        items.append(Chat((turn,), responses, example.label))
    return items


def _by_turns(number: int, pair: tuple[T, T]) -> tuple[T, T]:
    """Returns a pair, every other one the other way round."""
    return pair if number % 2 == 0 else (pair[1], pair[0])


def _fit(scorer: CompositeScorer) -> Finding:
    """Returns what numbers the file has, and of which data."""
    fitted, kind = scorer.config.fitted, scorer.config.rule.kind
    if fitted is None:
        return Finding("fitted numbers", f"rule {kind!r} needs none here", "ok")
    files = abbreviate(fitted.pairs)
    return Finding("fitted numbers", f"of {fitted.num_pairs:,} pairs of {files}", "ok")


def responses_scored(check: str, rows: Sequence[tuple[Score, ...]]) -> Finding:
    """Returns how many of the responses have a score."""
    scores = list(chain.from_iterable(rows))
    reasons = list(dict.fromkeys(score.error for score in scores if score.error))
    num = sum(not score.error for score in scores)
    verdict = "ok" if not reasons else "warning" if num else "fail"
    return Finding(
        check,
        f"{num} of {len(scores)} responses have a score",
        verdict,
        abbreviate(reasons),
        {"scores": [score.score for score in scores]},
    )


def _sense(rows: Sequence[tuple[Score, ...]]) -> Finding:
    """Returns how often the good response is above the poor one; few examples prove little."""
    by_turns = [_by_turns(number, (a, b)) for number, (a, b) in enumerate(rows)]
    pairs = [(good.score, poor.score) for good, poor in by_turns]
    scored = [(good, poor) for good, poor in pairs if good is not None and poor is not None]
    num = sum(good > poor for good, poor in scored)
    is_sane = 2 * num > len(scored)
    advice = "" if is_sane else "look at weights and their signs, part by part"
    return Finding(
        "good above poor",
        f"in {num} of {len(scored)} examples",
        "ok" if is_sane else "warning",
        advice,
        {"better": num, "examples": len(scored)},
    )
