"""Preference pairs from the scores of one reward model on the responses to one prompt.

The P pairs of a prompt are its i-th best response against its i-th worst, i = 1 .. P: P = 1 is best
against worst, and no response is in two pairs. LASeR's paper has P = 10 of 30 responses (arXiv
2410.01735, section 3.1); its code sorts the responses of all prompts of a batch together, so that
winner and loser may answer different prompts.

Shapes: n responses to one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def build_pairs(
    responses: Sequence[str], scores_n: ArrayLike, num_pairs: int = 1
) -> tuple[tuple[int, int], ...]:
    """Returns up to P pairs of the responses to one prompt, the clearest pair first.

    A pair is the numbers of the chosen and of the rejected response. Equal scores make no pair.

    Args:
        responses: texts; a text that comes again is left out, as its scores differ by rounding.
        scores_n: scores of the chosen arm; NaN or infinite where it failed, and left out.
        num_pairs: P.

    Raises:
        ValueError: lengths differ, or P < 1.
    """
    scores = np.asarray(scores_n, np.float64)
    if scores.shape != (len(responses),):
        raise ValueError(f"{len(responses)} responses do not match scores {scores.shape!r}")
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1, got {num_pairs!r}")
    usable: list[int] = []
    texts: set[str] = set()
    for i, text in enumerate(responses):
        if np.isfinite(scores[i]) and text not in texts:
            texts.add(text)
            usable.append(i)
    ranked = sorted(usable, key=lambda i: (-scores[i], i))
    nested = [(ranked[i], ranked[-1 - i]) for i in range(min(num_pairs, len(ranked) // 2))]
    return tuple((best, worst) for best, worst in nested if scores[best] > scores[worst])
