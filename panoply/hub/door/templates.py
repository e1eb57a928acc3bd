"""The one chat template of a tokenizer, and the check that it writes what turns say.

Template families of vision models walk over the parts of a turn's content, and write nothing of a
plain text. Their turns are given as one text part each, by a preamble of the template that goes
wherever the template goes and counts in its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from panoply.hub.door.checkpoint import few, read_fields

AS_PARTS = (
    "{%- set whole = namespace(turns=[]) -%}"
    "{%- for turn in messages -%}"
    "{%- if turn['content'] is string -%}"
    "{%- set parts = [{'type': 'text', 'text': turn['content']}] -%}"
    "{%- set whole.turns = whole.turns + [dict(turn, content=parts)] -%}"
    "{%- else -%}{%- set whole.turns = whole.turns + [turn] -%}{%- endif -%}"
    "{%- endfor -%}{%- set messages = whole.turns -%}"
)
"""Preamble that gives every turn's text as one part."""
TEXTS = ("Ten minutes.", "Put it into boiling water.")
"""Texts that must not be written alike."""


def settle_template(tokenizer: Any, folder: Path) -> None:
    """Leaves a tokenizer with one chat template that writes what turns say, or with none.

    Of several named templates, the one called `default` counts.

    Raises:
        ValueError: none of them is, or it writes different turns alike.
    """
    template: Any = getattr(tokenizer, "chat_template", None)
    if not template:
        template = _of_processor(folder)
    if isinstance(template, Mapping):
        named = cast(Mapping[str, str], template)
        if "default" not in named:
            raise ValueError(
                f"the tokenizer in {str(folder)!r} has chat templates {few(sorted(named))} and "
                "none called 'default': put the one it was trained with into chat_template.jinja"
            )
        template = named["default"]
    tokenizer.chat_template = template or None
    if not template:
        return
    fault = silent_role(tokenizer)
    if fault:
        tokenizer.chat_template = AS_PARTS + template
        if silent_role(tokenizer):
            raise ValueError(
                f"the chat template in {str(folder)!r} {fault}, so that other conversations would "
                "get the same score: restore the tokenizer files that the model came with"
            )


def silent_role(tokenizer: Any) -> str:
    """Returns what is wrong where a user's or the assistant's text makes no difference in tokens.

    The text is empty where nothing is wrong.
    """
    first, second = TEXTS
    changes = {
        "user": ((first, first), (second, first)),
        "assistant": ((first, first), (first, second)),
    }
    for role, conversations in changes.items():
        rows: list[list[int]] = []
        for contents in conversations:
            turns = [
                {"role": name, "content": content}
                for name, content in zip(changes, contents, strict=True)
            ]
            try:
                text = tokenizer.apply_chat_template(turns, tokenize=False)
            except Exception as error:  # whatever a template raises means that it refuses
                return f"refuses a user's turn and a reply ({' '.join(str(error).split())[:200]})"
            rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        if rows[0] == rows[1]:
            return f"writes nothing of what the {role} says"
    return ""


def _of_processor(folder: Path) -> Any:
    """Returns the chat template that a processor's file holds, as vision families save it."""
    file = folder / "chat_template.json"
    return read_fields(file).get("chat_template") if file.is_file() else None
