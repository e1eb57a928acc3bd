"""Validation: raw rows become canonical rows, or raise `BadRow` with the reason.

Nothing is repaired: a row that is not clearly a pair or a rating goes to quarantine.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from unicodedata import normalize

import numpy as np
import pyarrow as pa

from panoply.data.parse import number
from panoply.data.quarantine import BadRow
from panoply.data.ratings import RatingMap
from panoply.data.rows import RawPair, RawRating
from panoply.data.schema import (
    PAIRS,
    RATING_ROW,
    Message,
    digest,
    prompt_id,
    split_key,
    text_id_of,
)
from panoply.data.seen_keys import SeenKeys
from panoply.wire.chat_templates import ENDS
from panoply.wire.conversation import check_prompt_end, is_null, read_message

MAX_FACTOR = 1000.0
"""Largest margin or weight: beyond it a single pair outweighs all others together."""
MARKERS = tuple(end for end in ENDS if end.startswith(("<|", "<end")))
"""Ends of a policy's turn that no language has: `</s>` also ends a line through a text in HTML."""

Canonical: TypeAlias = dict[str, Any]
"""A row by column name, still without its `row_id`."""


def clean_prompt(messages: Sequence[object]) -> list[Message]:
    """Returns the messages with role and content only.

    Raises:
        BadRow: there is none, one cannot be read or has a name, for which a stored prompt has no
            place, or the last is not the user's or a tool's, or is empty.
    """
    if not messages:
        raise BadRow("missing prompt")
    try:
        clean: list[Message] = [read_message(message) for message in messages]
        check_prompt_end(clean)
    except ValueError as error:
        raise BadRow(str(error)) from error
    for message in clean:
        if "name" in message:
            raise BadRow("message has a name, which is not stored: write it into the content")
        if message["role"] == "assistant" and not message["content"].strip():
            raise BadRow("empty assistant turn")
        check_text(message["content"])
    if not clean[-1]["content"].strip():
        raise BadRow("empty prompt")
    return clean


def _clean_response(response: object) -> str:
    if response is None:
        raise BadRow("missing response")
    if not isinstance(response, str):
        raise BadRow("response is no text")
    if not response.strip():
        raise BadRow("empty response")
    check_text(response)
    return response


def check_text(text: str) -> None:
    """Checks that a text is whole.

    Raises:
        BadRow: it holds half a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "half a character (a lone surrogate), or bytes that are no UTF-8: save it as UTF-8"
        ) from error


def _composed(text: str) -> str:
    """Returns what a text shows: without white space at its ends, its letters composed."""
    return normalize("NFC", text.strip())


def _without_ends(chosen: str, rejected: str) -> tuple[str, str]:
    """Returns two responses without the token of a chat template that ends both of them.

    Raises:
        BadRow: such a token ends one of them alone, and would tell it from the other.
    """
    if not (chosen.endswith(ENDS) or rejected.endswith(ENDS)):
        return chosen, rejected
    ends = [next((end for end in ENDS if text.endswith(end)), "") for text in (chosen, rejected)]
    if all(ends):
        return chosen.removesuffix(ends[0]), rejected.removesuffix(ends[1])
    if any(end in MARKERS for end in ends):
        raise BadRow("a chat template's token ends one response alone")
    return chosen, rejected


def _clean_factor(value: object, name: str) -> float | None:
    """Returns a margin or weight; it may be null, but not NaN, which is a failed computation.

    Raises:
        BadRow: it is no number in [0, MAX_FACTOR].
    """
    if isinstance(value, float) and math.isnan(value):
        raise BadRow(f"{name} is NaN")
    factor = number(value)
    if factor is not None and not 0 <= factor <= MAX_FACTOR:
        raise BadRow(f"{name} is {'negative' if factor < 0 else f'above {MAX_FACTOR:g}'}")
    return factor


def _shared(raw: RawPair | RawRating, source: str, prompt: Sequence[Message]) -> Canonical:
    group = None if is_null(raw.group) else str(raw.group)
    subset = "" if is_null(raw.subset) else str(raw.subset)
    for text in (group or "", subset, source):
        check_text(text)
    return {
        "prompt_id": prompt_id(prompt),
        "split_key": split_key(prompt, group),
        "source": source,
        "subset": subset,
        "prompt": prompt,
    }


def clean_pair(raw: RawPair, source: str) -> Canonical:
    """Returns the columns of `schema.PAIRS` except `row_id`.

    Raises:
        BadRow: the prompt or a response is malformed or empty, the responses are the same, or the
            margin or weight is no number in [0, MAX_FACTOR].
    """
    prompt = clean_prompt(raw.prompt)
    chosen, rejected = _without_ends(_clean_response(raw.chosen), _clean_response(raw.rejected))
    if _composed(chosen) == _composed(rejected):
        raise BadRow("identical responses")
    shared = _shared(raw, source, prompt)
    return {
        **shared,
        "chosen_id": text_id_of(shared["prompt_id"], chosen),
        "rejected_id": text_id_of(shared["prompt_id"], rejected),
        "margin": _clean_factor(raw.margin, "margin"),
        "weight": _clean_factor(raw.weight, "weight"),
        "chosen_length": len(chosen),
        "rejected_length": len(rejected),
        "chosen": chosen,
        "rejected": rejected,
    }


def clean_rating(
    raw: RawRating, source: str, objectives: Mapping[str, str], scales: Mapping[str, RatingMap]
) -> Canonical:
    """Returns the columns of `schema.ratings_schema` except `row_id` and objectives not rated.

    Args:
        raw: the row as it stands in the file.
        source: name of its data set.
        objectives: name of the objective by attribute.
        scales: declared scales by objective; a rating outside of one is a defect.

    Raises:
        BadRow: prompt or response is malformed or empty, a rating is no finite number or off its
            scale, or nothing is rated.
    """
    prompt = clean_prompt(raw.prompt)
    response = _clean_response(raw.response)
    rated: dict[str, float] = {}
    for attribute, value in raw.ratings.items():
        rating, objective = number(value), objectives[attribute]
        if rating is None:
            continue
        if objective in scales and not scales[objective].holds(rating):
            raise BadRow("rating outside its scale")
        rated[objective] = rating
    if not rated:
        raise BadRow("no rating")
    shared = _shared(raw, source, prompt)
    return {
        **shared,
        "text_id": text_id_of(shared["prompt_id"], response),
        "length": len(response),
        "response": response,
        **rated,
    }


def with_row_ids(rows: Iterable[Canonical], schema: pa.Schema) -> Iterator[Canonical]:
    """Adds `row_id`: a digest of texts (by id), source, labels and the occurrence number.

    So equal rows get different ids, and the ids do not depend on the order of the files or on
    other rows. Labels count as stored, in float32.
    """
    fixed = {*RATING_ROW.names, *PAIRS.names} - {"margin", "weight"}
    labels = sorted(name for name in schema.names if name not in fixed)
    texts = [name for name in ("text_id", "chosen_id", "rejected_id") if name in schema.names]
    seen, repeats = SeenKeys(), Counter[int]()
    for row in rows:
        rated = {name: float(np.float32(row[name])) for name in labels if row.get(name) is not None}
        values = json.dumps(rated) if rated else "{}"
        content = digest(*(row[name] for name in texts), row["source"], values)
        key = int(content[:16], 16) or 1
        if seen.add(key):
            repeats[key] += 1
        occurrence = repeats.get(key, 0)
        yield {"row_id": digest("row", content, str(occurrence)), **row}
