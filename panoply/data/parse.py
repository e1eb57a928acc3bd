"""Parsers of labels and dialogues in the spellings that published data sets use.

A value that cannot be parsed raises `BadRow`, which sends its row to quarantine with the reason.
"""

from __future__ import annotations

import math
import re
from typing import cast
from unicodedata import normalize

from panoply.data.quarantine import BadRow
from panoply.data.schema import Message
from panoply.data.transcripts import read_transcript
from panoply.wire.conversation import read_message

NOT_RATED = ("", "N/A", "NA", "null", "None")
"""Strings that data sets write where there is no rating."""
TRUTHS = {"true": 1.0, "false": 0.0}
"""Flags as pandas and Excel write them into CSV, without case."""

HUMAN = "\n\nHuman:"
"""Beginning of an HH-RLHF dialogue."""
HH_DIALOGUE = re.compile(r"\n\nHuman:|\s*Human:.*\n\nAssistant:", re.DOTALL)

HELPSTEER_TURN = re.compile(r"<extra_id_1>(\w+)\n")
"""Beginning of a later turn in HelpSteer2's prompts."""


def number(value: object) -> float | None:
    """Returns a label as a number, a flag as 0 or 1, None for "not rated" (null, NaN, "N/A").

    Raises:
        BadRow: if it is infinite in float32 or no number.
    """
    if value is None or (isinstance(value, str) and value.strip() in NOT_RATED):
        return None
    if isinstance(value, str) and value.strip().lower() in TRUTHS:
        return TRUTHS[value.strip().lower()]
    try:
        parsed = float(cast("float | str", value))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("label is no number") from error
    if abs(parsed) > 3.4e38:
        raise BadRow("label is not finite")
    return None if math.isnan(parsed) else parsed


def source_of(value: object) -> str:
    """Returns the name of a row's data set, its letters composed; empty where there is none."""
    return normalize("NFC", value.strip()) if isinstance(value, str) else ""


def parse_dialogue(text: str) -> list[Message]:
    """Takes an HH-RLHF dialogue apart: turns open with a blank line and "Human:" or "Assistant:".

    Raises:
        BadRow: if the text does not begin with a turn.
    """
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text.lstrip("\n"))
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

    Raises:
        BadRow: a message cannot be read, or a text writes turns that cannot be taken apart.
    """
    if not isinstance(value, str):
        return _messages(value) or []
    if not value.strip():
        return []
    if HELPSTEER_TURN.search(value):
        return parse_markers(value)
    messages = parse_dialogue(value) if value.startswith(HUMAN) else read_transcript(value)
    if messages is None:
        return [{"role": "user", "content": value}]
    opens_reply = messages[-1]["role"] == "assistant" and not messages[-1]["content"]
    return messages[:-1] if opens_reply else messages


def as_dialogue(value: object) -> list[Message] | None:
    """Returns the turns of a response that is a dialogue: its own last turn, or the prompt too.

    A text is a dialogue where it is nothing but turns: messages as JSON or as a Python literal, in
    a chat template's markers, or "Human:" and "Assistant:". None: it is no dialogue, as a text that
    only mentions such is none.

    Raises:
        BadRow: a message cannot be read, or a text writes turns that cannot be taken apart.
    """
    if not isinstance(value, str):
        return _messages(value)
    return parse_dialogue(value) if HH_DIALOGUE.match(value) else read_transcript(value)


def _messages(value: object) -> list[Message] | None:
    """Returns a list of messages, or one message, as they are read; None for other values."""
    if isinstance(value, dict):
        value = [cast("object", value)]
    if not isinstance(value, list):
        return None
    messages: list[Message] = []
    for message in cast("list[object]", value):
        try:
            messages.append(read_message(message))
        except ValueError as error:
            raise BadRow(str(error)) from error
    return messages
