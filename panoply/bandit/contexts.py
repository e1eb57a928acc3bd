"""Contexts of prompts, of unit length behind a constant: states of a model, or hashed words.

Without the constant a linear bandit could not learn that an arm is better or worse than others on
all prompts.

Shapes: N prompts, D features.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from panoply.types import Array

WORD = re.compile(r"\w+")
SIGN = 2**31
"""Bit of a word's hash that gives its sign."""


def unit_contexts(states_ND: Array, center_D: Array) -> Array:
    """Returns `[N, 1 + D]`, states about a center behind a constant, of unit length.

        x = [1; (s - c) / |s - c|] / sqrt(2)

    The center, which all states share, tells no prompts apart.
    """
    centered = states_ND - center_D
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    unit = np.divide(centered, length, out=np.zeros_like(centered), where=length > 0)
    return with_constant(unit)


def with_constant(unit_ND: Array) -> Array:
    """Returns features of unit length behind a constant, of unit length together."""
    return np.concatenate([np.ones((len(unit_ND), 1)), unit_ND], axis=1) / np.sqrt(2)


def word_contexts(texts: Sequence[str], size: int) -> Array:
    """Returns `[N, 1 + size]`, the words of each text, hashed with signs, behind a constant.

    Words in lower case by CRC-32, as the hashing trick has them (Weinberger and others, 2009): its
    remainder is the feature, its highest bit the sign. A word counts by the root of its number.
    """
    sums_ND = np.zeros((len(texts), size))
    for row, text in zip(sums_ND, texts, strict=True):
        counts: dict[str, int] = {}
        for word in WORD.findall(text.lower()):
            counts[word] = counts.get(word, 0) + 1
        for word, count in counts.items():
            code = zlib.crc32(word.encode(errors="surrogatepass"))
            row[code % size] += np.sqrt(count) * (1 if code & SIGN else -1)
    return unit_contexts(sums_ND, np.zeros(size))
