"""Markers of turns in the common families of chat templates."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain

BOS = ("<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>")
"""Beginnings of a sequence, as tokenizers write them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Markers of turns in a family of templates. A role that has no opening has no turn."""

    openings: Mapping[str, str]
    """Text before a turn, by role."""
    closings: Mapping[str, tuple[str, ...]]
    """Texts that may stand behind a turn, by role; the first is the one that we write."""
    ends: tuple[str, ...]
    """Tokens with which a policy ends its own turn. No content holds one."""
    marks: tuple[str, ...] = ()
    """Other texts that no content holds."""
    before: str = ""
    """Look-behind of a regular expression, for the text before an opening."""
    pad: str = ""
    """Text between an opening and its content."""
    trims: bool = False
    """Whether the template cuts the white space around content."""
    alternates: bool = False
    """Whether turns must alternate between user and assistant, behind at most one system turn: the
    markers are plain words, which content may hold."""
    has_head: bool = False
    """Whether text in front of the first opening is the system prompt."""
    preamble: str = ""
    """Regular expression of the text that the template writes in front of a system prompt."""
    bos: str = ""
    """Text that the template writes in front of all."""
    pattern: re.Pattern[str] = field(init=False, compare=False, repr=False)
    """Regular expression of any opening; `lastgroup` is its role."""

    def __post_init__(self) -> None:
        groups = [f"(?P<{role}>{re.escape(text)})" for role, text in self.openings.items()]
        object.__setattr__(self, "pattern", re.compile(f"{self.before}(?:{'|'.join(groups)})"))

    def closed(self, role: str, inside: str) -> str | None:
        """Returns the content of a turn; None where it does not end as this role's turns do."""
        ends = [end for end in self.closings[role] if inside.endswith(end)]
        return inside[: len(inside) - len(max(ends, key=len))] if ends else None

    def without_end(self, reply: str) -> str:
        """Returns a policy's turn without the tokens that ended it; see `without_end`."""
        return without_end(reply, self.ends)

    def content(self, text: str) -> str:
        """Returns the content of a turn as the template was given it.

        Raises:
            ValueError: it holds a marker.
        """
        marks = [mark for mark in (*self.ends, *self.marks) if mark in text]
        if marks:
            raise ValueError(f"holds {marks[0]!r}, so that where it ends cannot be told")
        return text.strip() if self.trims else text


def without_bos(text: str) -> str:
    """Returns a text without the beginning of a sequence in front of it."""
    for bos in BOS:
        if text.startswith(bos):
            return text.removeprefix(bos)
    return text


def without_end(reply: str, ends: Collection[str]) -> str:
    """Returns a reply without the tokens that ended it, of which it may have several.

    White space behind such a token goes with it.
    """
    end = len(reply)
    while True:
        behind = end
        while behind and reply[behind - 1].isspace():
            behind -= 1
        last = next((mark for mark in ends if reply.endswith(mark, 0, behind)), None)
        if last is None:
            return reply[:end]
        end = behind - len(last)


def _tagged(end: str, *others: str) -> Template:
    """Returns a template with Zephyr's markers; `others` are more ends of a policy's turn."""
    roles = ("system", "user", "assistant")
    return Template(
        openings={role: f"<|{role}|>\n" for role in roles},
        closings=dict.fromkeys(roles, (f"{end}\n",)),
        ends=(end, *others),
        before=r"(?<![^\n])",
    )


_LLAMA3_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}
_TULU_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>")

TEMPLATES: Mapping[str, Template] = {
    "chatml": Template(
        openings={
            role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant", "tool")
        },
        closings=dict.fromkeys(("system", "user", "assistant", "tool"), ("<|im_end|>\n",)),
        ends=("<|im_end|>", "<|endoftext|>"),
        marks=("<|im_start|>",),
    ),
    "llama3": Template(
        openings={
            role: f"<|start_header_id|>{name}<|end_header_id|>\n\n"
            for role, name in _LLAMA3_ROLES.items()
        },
        closings=dict.fromkeys(_LLAMA3_ROLES, ("<|eot_id|>",))
        | {"assistant": ("<|eot_id|>", "<|eom_id|>")},
        ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        marks=("<|start_header_id|>", "<|end_header_id|>"),
        trims=True,
        preamble=r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*(?:\n\n|\Z)",
        bos="<|begin_of_text|>",
    ),
    "gemma": Template(
        openings={"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"},
        closings=dict.fromkeys(("user", "assistant"), ("<end_of_turn>\n",)),
        ends=("<end_of_turn>", "<eos>"),
        marks=("<start_of_turn>",),
        trims=True,
        bos="<bos>",
    ),
    "zephyr": _tagged("</s>"),
    "phi3": _tagged("<|end|>", "<|endoftext|>"),
    "tulu": Template(
        openings={role: f"<|{role}|>\n" for role in ("system", "user", "assistant")},
        closings={
            "system": ("\n",),
            "user": ("\n",),
            "assistant": tuple(f"{end}\n" for end in _TULU_ENDS),
        },
        ends=_TULU_ENDS,
        before=r"(?<![^\n])",
        alternates=True,
    ),
    "mistral": Template(
        openings={"system": "[SYSTEM_PROMPT]", "user": "[INST]", "assistant": "[/INST]"},
        closings={
            "system": ("[/SYSTEM_PROMPT]",),
            "user": ("",),
            "assistant": ("</s>", "</s> ", "</s><s>"),
        },
        ends=("</s>",),
        marks=("[/SYSTEM_PROMPT]",),
        pad=" ",
        trims=True,
        alternates=True,
        bos="<s>",
    ),
    "vicuna": Template(
        openings={"user": "USER:", "assistant": "ASSISTANT:"},
        closings={"system": (" ",), "user": (" ",), "assistant": ("</s>",)},
        ends=("</s>",),
        before=r"(?<![^ >])",
        pad=" ",
        trims=True,
        alternates=True,
        has_head=True,
    ),
}
"""Templates by family; where several fit a text, the first is the stricter one.

chatml: Qwen, SmolLM, Hermes, Yi. llama3: Llama 3 to 3.3. gemma: Gemma 1 to 3. zephyr: Zephyr.
phi3: Phi-3. tulu: Tulu 2 and 3, OLMo. mistral: Mistral Instruct. vicuna: Vicuna 1.1 and later.
"""

ENDS = tuple(dict.fromkeys(chain.from_iterable(form.ends for form in TEMPLATES.values())))
"""Tokens with which policies of all these families end their turns."""
