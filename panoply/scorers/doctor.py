"""Findings about any scorer that is asked: whether it answers, the same each time, and in sense."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from panoply.measure.conformance import Finding
from panoply.scorers.recorded import RecordedScorer
from panoply.scorers.where import Scorer
from panoply.serve.calls import each_alone
from panoply.wire.request import Chat, Score, abbreviate

T = TypeVar("T")
ROUNDING = 1e-3
"""Difference of two scores that batches of another size may make."""


@dataclass(frozen=True, slots=True)
class Example:
    """Question with a good and a poor response, and the right answer."""

    question: str
    good: str
    poor: str
    label: str


EXAMPLES: tuple[Example, ...] = (
    Example("What is 17 + 25?", "17 + 25 = 42.", "17 + 25 = 32.", "42"),
    Example("Which planet is closest to the sun?", "Mercury is.", "I like planets.", "Mercury"),
    Example(
        "How do I boil an egg?",
        "Put it into boiling water for eight minutes, then cool it under cold water.",
        "Eggs come from hens.",
        "Eight to ten minutes in boiling water",
    ),
    Example(
        "Translate 'good morning' into French.", "Bonjour.", "Gute Nacht heisst das.", "Bonjour"
    ),
    Example(
        "Write a sentence with the word 'river'.",
        "The river carried the boat past the village.",
        "The mountain was high.",
        "Any sentence with the word",
    ),
    Example("How many legs do two spiders have?", "Sixteen, eight each.", "Twelve.", "16"),
)
"""What a scorer is tried on: small, so that one that fails here fails everywhere."""


def example_items() -> list[Chat]:
    """Returns a prompt for each example, with its good and its poor response."""
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


def examine_scorer(open_scorer: Callable[[], Scorer]) -> list[Finding]:
    """Asks a function or another server about examples, and returns what was found.

    Args:
        open_scorer: opens it in the event loop that asks.

    Raises:
        ValueError, OSError: it cannot be opened.
    """

    async def examine() -> list[Finding]:
        scorer, items = open_scorer(), example_items()
        begun = time.monotonic()
        rows = await scorer.score(items)
        seconds = time.monotonic() - begun
        again = await scorer.score(items)
        alone: list[tuple[Score, ...]] = []
        for item in items:
            parts = await scorer.score(each_alone(item))
            alone.append(tuple(chain.from_iterable(parts)))
        return [
            answers("answers", rows),
            _same("asked again", rows, again, "fix its seed, or score several times and average"),
            _same("alone", rows, alone, "send all responses to a prompt in one request"),
            sense(rows, "measure it on labeled pairs (jobs.evaluate) before it is trained on"),
            Finding("time", f"{seconds:.3g} s for {len(items)} prompts", "ok"),
        ]

    return asyncio.run(examine())


def examine_table(scorer: RecordedScorer) -> list[Finding]:
    """Returns what a table of recorded scores holds."""
    scores = list(scorer.recorded())
    values = sorted(score.score for score in scores if score.score is not None)
    text = f"{len(values):,} of {len(scores):,} recorded responses have a score"
    findings = [Finding("table", text, "ok" if values else "fail")]
    if values:
        text = f"scores {values[0]:.4g} to {values[-1]:.4g}"
        advice = "" if values[0] < values[-1] else "all scores are the same: they rank nothing"
        findings.append(Finding("scale", text, "warning" if advice else "ok", advice))
    if scorer.rule is not None:
        num_missing = sum(None in score.details.steps for score in scores)
        text = f"{scorer.rule.steps} of the steps; {num_missing:,} responses lack a step's score"
        findings.append(Finding("steps", text, "ok"))
    return findings


def answers(check: str, rows: Sequence[tuple[Score, ...]]) -> Finding:
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


def sense(rows: Sequence[tuple[Score, ...]], advice: str) -> Finding:
    """Returns how often the good response is above the poor one; few examples prove little."""
    by_turns = [_by_turns(number, (a, b)) for number, (a, b) in enumerate(rows)]
    pairs = [(good.score, poor.score) for good, poor in by_turns]
    scored = [(good, poor) for good, poor in pairs if good is not None and poor is not None]
    num = sum(good > poor for good, poor in scored)
    is_sane = 2 * num > len(scored)
    return Finding(
        "good above poor",
        f"in {num} of {len(scored)} examples",
        "ok" if is_sane else "warning",
        "" if is_sane else advice,
        {"better": num, "examples": len(scored)},
    )


def _same(
    check: str,
    rows: Sequence[tuple[Score, ...]],
    others: Sequence[tuple[Score, ...]],
    advice: str,
) -> Finding:
    """Returns how many scores differ between two ways to ask for them."""
    pairs = list(zip(chain.from_iterable(rows), chain.from_iterable(others), strict=True))
    num = sum(not _is_close(a.score, b.score) for a, b in pairs)
    return Finding(
        check,
        f"{num} of {len(pairs)} scores differ",
        "warning" if num else "ok",
        advice if num else "",
        {"differ": num},
    )


def _is_close(a: float | None, b: float | None) -> bool:
    """Returns whether two scores are the same but for rounding, or both are missing."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING)
