"""Findings about a composite: whether each part answers, and what comes of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from panoply.measure.conformance import Finding
from panoply.scorers.composite.scorer import CompositeScorer
from panoply.scorers.doctor import answers, example_items, sense
from panoply.scorers.where import Scorer
from panoply.wire.request import abbreviate


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
            findings.append(answers(f"part {name}", await part.score(items)))
        rows = await scorer.score(items)
        advice = "look at weights and their signs, part by part"
        return [*findings, answers("composite", rows), sense(rows, advice)]

    return asyncio.run(examine())


def _fit(scorer: CompositeScorer) -> Finding:
    """Returns what numbers the file has, and of which data."""
    fitted, kind = scorer.config.fitted, scorer.config.rule.kind
    if fitted is None:
        return Finding("fitted numbers", f"rule {kind!r} needs none here", "ok")
    files = abbreviate(fitted.pairs)
    return Finding("fitted numbers", f"of {fitted.num_pairs:,} pairs of {files}", "ok")
