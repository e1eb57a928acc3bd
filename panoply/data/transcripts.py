"""Turns that arrive as one text: messages as JSON, a rendered chat template, Human and Assistant.

Exports by pandas, CSV or Arrow's JSON type write messages as text, and some data sets are rendered
already. Such a text is read as the turns that it writes, or its row is refused, and is never
trained on as the words of a user. A text that mentions such markers, quotes them or asks about them
stays a text: it is taken for turns only where it is nothing but turns.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from panoply.data.quarantine import BadRow
from panoply.data.schema import Message
from panoply.wire.chat_templates import TEMPLATES, Template, without_bos
from panoply.wire.conversation import SHAREGPT_ROLES, read_message
from panoply.wire.request import RequestError
from panoply.wire.templates import parse

MAX_LITERAL = 1_000_000
"""Characters of a text that is tried as a Python literal, whose parser takes much memory."""
RECORDS = re.compile(r"""\s*"?(?:array\()?[\[(]?\s*\{""")
"""Beginning of a record, or of a list of records."""
SPEAKER_KEY = re.compile(r"""\\?["'](?:role|from)\\?["']\s*:""")
FIRST_KEY = re.compile(RECORDS.pattern + r"""\s*\\?["'](?:role|content|from|value)\\?["']\s*:""")
"""Beginning of records whose first key is a message's."""
SPEAKERS: Mapping[str, str] = {"human": "user", "user": "user", "assistant": "assistant"}
SPEAKER = re.compile(r"(?:^|\n+)(?:###? ?)?(Human|User|Assistant): ?", re.IGNORECASE)
WORD_FAMILIES = ("vicuna",)
"""Templates whose markers are plain words: a text is of one only where it ends in a header."""
UNREAD_TEMPLATES = (
    ("<|start|>", "<|message|>"),  # gpt-oss
    ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),  # DeepSeek
    ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cAssistant\uff5c>"),
    ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),  # Command R
    ("<BOS_TOKEN><|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ("GPT4 Correct User:", "GPT4 Correct Assistant:"),  # OpenChat, Starling
    ("<|prompter|>", "<|assistant|>"),  # OpenAssistant
    ("### Instruction:", "### Response:"),  # Alpaca
    ("Below is an instruction that describes a task", "### Response:"),
    ("<start_of_turn>", "<end_of_turn>"),
    ("[INST]", "[/INST]"),
    ("<|im_start|>", "<|im_end|>"),
    ("<|start_header_id|>", "<|eot_id|>"),
    ("<|user|>\n", ""),
    ("<|system|>", "<|assistant|>"),
)
"""Beginnings of rendered text, and what such a text also holds, where no parser has read it."""


MAY_BEGIN = re.compile(
    r"""\s*(?:[<\[({"#]|array\(|human|user|assistant|gpt4|below is|a chat between)""",
    re.IGNORECASE,
)
"""Beginning of every text that is read or refused below; nearly all texts have none."""


def read_transcript(text: str) -> list[Message] | None:
    """Returns the turns that a text writes; None where it is plain text.

    Where the text ends with the assistant's header, the last turn is the assistant's and empty.

    Raises:
        BadRow: the text writes turns, and they cannot be taken apart.
    """
    if not MAY_BEGIN.match(text):
        return None
    if RECORDS.match(text) and SPEAKER_KEY.search(text):
        return _records(text)
    return _rendered(text) or _speakers(text.strip("\n"))


# Messages as JSON, or as Python prints them


def _records(text: str) -> list[Message] | None:
    value = _literal(text)
    if isinstance(value, str):  # JSON in JSON
        value = _literal(value)
    if value is None:
        if FIRST_KEY.match(text) and not _goes_on(text):
            raise BadRow(
                "messages stand as text that is neither JSON nor a Python literal, or is cut short"
            )
        return None
    records = cast("list[Any]", list(value) if isinstance(value, list | tuple) else [value])
    if not (records and all(map(_is_message, records))):
        return None
    return [_message(record) for record in records]


def _goes_on(text: str) -> bool:
    """Returns whether words follow the records: a text about messages, and none that is cut."""
    is_whole = text.count("{") == text.count("}") and text.count("[") == text.count("]")
    return is_whole and not text.rstrip().endswith(("]", "}", ")"))


def _literal(text: str) -> object:
    """Returns what a text says as JSON or as a Python literal, None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > MAX_LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_message(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    keys = cast("dict[Any, Any]", record)
    return {"role", "content"} <= keys.keys() or (
        "value" in keys and keys.get("from") in SHAREGPT_ROLES
    )


def _message(record: object) -> Message:
    try:
        return read_message(record)
    except ValueError as error:
        raise BadRow(str(error)) from error


# Rendered chat templates


def _rendered(text: str) -> list[Message] | None:
    """Returns the turns of a text that a chat template wrote, None where none did."""
    body = text.lstrip()
    for family, form in TEMPLATES.items():
        if not _may_be(form, family, body):
            continue
        try:
            turns, reply = parse(body, family)
        except RequestError:
            continue
        if form.alternates and reply is None and turns[-1]["role"] != "assistant":
            continue  # its markers are plain words, and nothing closes them
        if any("<<SYS>>" in turn["content"] for turn in turns):
            raise BadRow("text is rendered by Llama 2's chat template, which is not read")
        last = [] if reply is None else [{"role": "assistant", "content": reply}]
        return [*turns, *last]
    for opening, other in UNREAD_TEMPLATES:
        if without_bos(body).startswith(opening) and other in body:
            raise BadRow(f"text is rendered by a chat template ({opening!r}) that cannot be read")
    return None


def _may_be(form: Template, family: str, text: str) -> bool:
    if family in WORD_FAMILIES:
        header = form.openings["assistant"]
        return text.startswith(("USER:", "A chat between")) and text.rstrip().endswith(header)
    return form.pattern.match(without_bos(text)) is not None


# Human and Assistant


def _speakers(text: str) -> list[Message] | None:
    """Returns the turns of a Human/Assistant transcript, None where the text is none.

    It is one where it begins with a user, both alternate, and it ends with the assistant's header
    or with one paragraph of the user's behind a reply: a text that quotes a dialogue goes on.
    """
    if not SPEAKER.match(text):
        return None
    _, *parts = SPEAKER.split(text)
    roles = [SPEAKERS[speaker.lower()] for speaker in parts[::2]]
    contents = [content.strip() for content in parts[1::2]]
    if len(roles) < 2 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        return None
    ends_open = contents[-1] == "" if roles[-1] == "assistant" else "\n" not in contents[-1]
    if not ends_open:
        return None
    return [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
