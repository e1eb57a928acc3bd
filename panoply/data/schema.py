"""Arrow schemas of pairs and ratings, their ids, and the one split that every file shares.

`text_id` names a (prompt, response): features and scores are stored by it. `row_id` names a labeled
row: quarantine and label changes refer to it. `prompt_id` names a prompt as the model sees it, and
the split key names the unit of splitting (the normalized prompt, or the row's `group`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Literal, TypeAlias

import pyarrow as pa

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = Sequence[Message]
Part: TypeAlias = Literal["train", "select", "calibrate", "test"]

PARTS: tuple[Part, ...] = ("train", "select", "calibrate", "test")
SHARES: tuple[float, ...] = (0.70, 0.10, 0.10, 0.10)

PROMPT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PAIRS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("split_key", pa.string()),
        ("source", pa.string()),
        ("subset", pa.string()),
        ("margin", pa.float32()),
        ("weight", pa.float32()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("prompt", PROMPT),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
    ]
)
"""A pair as stored after ingestion. Lengths are in characters; `margin`, `weight` may be null."""

RATING_ROW = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("text_id", pa.string()),
        ("split_key", pa.string()),
        ("source", pa.string()),
        ("subset", pa.string()),
        ("length", pa.int32()),
        ("prompt", PROMPT),
        ("response", pa.string()),
    ]
)
"""A rating as stored after ingestion, before its objective columns."""


def ratings_schema(objectives: Sequence[str]) -> pa.Schema:
    """Returns RATING_ROW followed by one nullable float32 per objective, in the raw scale."""
    return pa.schema([*RATING_ROW, *(pa.field(name, pa.float32()) for name in objectives)])


def digest(*parts: str) -> str:
    """Returns 32 hex digits that depend on the parts and on where one ends and the next begins."""
    # As json.dumps writes a list of texts, in a third of the time.
    joined = f"[{', '.join(map(encode_basestring_ascii, parts))}]"
    return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()


def prompt_id(prompt: Prompt) -> str:
    """Returns the id of a prompt exactly as the model sees it."""
    parts: list[str] = []
    for message in prompt:
        parts += (message["role"], message["content"])
    return digest("prompt", *parts)


def text_id(prompt: Prompt, response: str) -> str:
    """Returns the id by which features and scores of (prompt, response) are stored."""
    return text_id_of(prompt_id(prompt), response)


def text_id_of(prompt: str, response: str) -> str:
    """Returns the id of (prompt, response) from the prompt's id."""
    return digest("text", prompt, response)


def split_key(prompt: Prompt, group: str | None = None) -> str:
    """Returns the unit of splitting: the row's `group` where given, else its normalized prompt.

    Prompts that differ only in case or white space fall into the same part.
    """
    if group:
        return digest("group", group)
    parts: list[str] = []
    for message in prompt:
        parts += (message["role"], " ".join(message["content"].casefold().split()))
    return digest("key", *parts)


def uniform(seed: int, purpose: str, key: str) -> float:
    """Returns a number in [0, 1) that is a pure function of its arguments."""
    return int(digest(str(seed), purpose, key)[:13], 16) / 16**13


def part_of(key: str, seed: int) -> Part:
    """Returns the part of a split key: the same for every file, ratings and pairs alike."""
    draw = uniform(seed, "part", key)
    upper = 0.0
    for part, share in zip(PARTS, SHARES, strict=True):
        upper += share
        if draw < upper:
            return part
    return "test"


def fold_of(key: str, seed: int, num_folds: int) -> int:
    """Returns the fold of a split key, for out-of-fold predictions inside *train*."""
    return int(uniform(seed, "fold", key) * num_folds)
