"""Preference pairs from the scores of one reward model on the responses to one prompt.

The P pairs of a prompt are its i-th best response against its i-th worst, i = 1 .. P: P = 1 is best
against worst, and no response is in two pairs. LASeR's paper has P = 10 of 30 responses (arXiv
2410.01735, section 3.1); its code sorts the responses of all prompts of a batch together, so that
winner and loser may answer different prompts.

Shapes: n responses to one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class PromptPairs:
    """Pairs of one prompt, and what was left out."""

    pairs: tuple[tuple[int, int], ...]
    """Numbers of the chosen and the rejected response, the clearest pair first."""
    gaps: tuple[float, ...]
    """Score of the chosen minus score of the rejected response."""
    num_failed: int
    """Responses without a finite score."""
    num_repeated: int
    """Responses that say what an earlier one says."""
    num_ties: int
    """Pairs whose scores are not further apart than `min_gap`."""


def build_pairs(
    responses: Sequence[str], scores_n: ArrayLike, num_pairs: int = 1, min_gap: float = 0.0
) -> PromptPairs:
    """Returns up to P pairs of the responses to one prompt.

    Args:
        responses: texts; a text that comes again is left out, as its scores differ by rounding.
        scores_n: of the chosen arm; NaN or infinite where it failed.
        num_pairs: P.
        min_gap: scores that are not further apart are a tie.

    Raises:
        ValueError: lengths differ, or P < 1, or min_gap < 0.
    """
    scores = np.asarray(scores_n, np.float64)
    if scores.shape != (len(responses),):
        raise ValueError(f"{len(responses)} responses do not match scores {scores.shape!r}")
    if num_pairs < 1 or not min_gap >= 0:
        raise ValueError(
            f"`num_pairs` must be at least 1 and `min_gap` at least 0, got {num_pairs!r}, "
            f"{min_gap!r}"
        )
    scored = [i for i in range(len(responses)) if np.isfinite(scores[i])]
    first = list({responses[i]: i for i in reversed(scored)}.values())
    ranked = sorted(first, key=lambda i: (-scores[i], i))
    nested = [(ranked[i], ranked[-1 - i]) for i in range(min(num_pairs, len(ranked) // 2))]
    kept = tuple((i, j) for i, j in nested if scores[i] - scores[j] > min_gap)
    return PromptPairs(
        pairs=kept,
        gaps=tuple(float(scores[i] - scores[j]) for i, j in kept),
        num_failed=len(responses) - len(scored),
        num_repeated=len(scored) - len(first),
        num_ties=len(nested) - len(kept),
    )
