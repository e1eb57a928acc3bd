"""Parsers of labels and dialogues in the spellings that published data sets use.

A value that cannot be parsed raises `BadRow`, which sends its row to quarantine with the reason.
"""

from __future__ import annotations

import math
import re
from typing import cast

from panoply.data.schema import Message

NOT_RATED = ("", "N/A", "NA", "null", "None")
"""Strings that data sets write where there is no rating."""

HUMAN = "\n\nHuman:"
"""Beginning of an HH-RLHF dialogue."""


class BadRow(ValueError):
    """A row that goes to quarantine; its message is the reason."""


def number(value: object) -> float | None:
    """Returns a label as a number, None for "not rated" (null, NaN, "N/A").

    Raises:
        BadRow: if it is infinite in float32 or no number.
    """
    if value is None or (isinstance(value, str) and value.strip() in NOT_RATED):
        return None
    try:
        parsed = float(cast("float | str", value))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("label is no number") from error
    if abs(parsed) > 3.4e38:
        raise BadRow("label is not finite")
    return None if math.isnan(parsed) else parsed


def parse_dialogue(text: str) -> list[Message]:
    """Takes an HH-RLHF dialogue apart: turns open with a blank line and "Human:" or "Assistant:".

    Raises:
        BadRow: if the text does not begin with a turn.
    """
    before, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not parts:
        raise BadRow("not a Human/Assistant dialogue")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def parse_markers(text: str) -> list[Message]:
    r"""Takes a HelpSteer2 prompt apart: later turns open with "<extra_id_1>Assistant\n" or User.

    Raises:
        BadRow: if a marker is not followed by one of these two words.
    """
    first, *later = text.split("<extra_id_1>")
    messages = [{"role": "user", "content": first.removeprefix("User\n").strip()}] if first else []
    for turn in later:
        speaker, _, content = turn.partition("\n")
        if speaker not in ("User", "Assistant"):
            raise BadRow("unknown role")
        messages.append({"role": speaker.lower(), "content": content.strip()})
    return list(messages)


def as_messages(value: object) -> list[Message]:
    """Returns a prompt that is a text, a dialogue as text, or messages as a list of messages.

    A missing prompt gives an empty list, which `panoply.data.validate` rejects.
    """
    if isinstance(value, list):
        return cast("list[Message]", value)
    if not isinstance(value, str) or not value.strip():
        return []
    if "<extra_id_1>" in value:
        return parse_markers(value)
    if not value.startswith(HUMAN):
        return [{"role": "user", "content": value}]
    messages = parse_dialogue(value)
    opens_reply = messages[-1]["role"] == "assistant" and not messages[-1]["content"]
    return messages[:-1] if opens_reply else messages
