"""Content is never structure: a text that spells a control token is tokenized as plain text.

A chat template writes a response between control tokens (`<|im_start|>`, `<|im_end|>`), and a
tokenizer reads them wherever they stand: a response could end its own turn and open another one,
and a prompt could open a system turn. So the control tokens that content spells are replaced by
stand-ins before the template writes them, and stand-ins are tokenized as the text that they stand
for, in two pieces, neither of which is a control token. A text without one is tokenized as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

STAND_IN = "\ufdd0"
"""First of a stand-in's two characters: a noncharacter of Unicode, which no text interchanges."""
FIRST = 0x100000
"""Code point that is the second one for the first control token: private use, plane 16."""


class ControlTokens:
    """The control tokens of a tokenizer, and the way around them.

    Args:
        tokenizer: names its special tokens.
        markers: texts that the chat template writes around turns. An added token in one of them
            counts although it is not special; others (`<think>`) are words of the model.
    """

    def __init__(self, tokenizer: Any, markers: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer: Any = getattr(backend, "normalizer", None)
        written = "\n".join(markers)
        names = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if len(token.content.strip()) > 1 and (token.special or token.content in written)
        }
        self.names = tuple(sorted(names, key=lambda name: (-len(name), name)))
        """Spellings of the control tokens, longest first."""
        self._places = {name: chr(FIRST + i) for i, name in enumerate(self.names)}
        self._spelled = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        last = chr(FIRST + max(0, len(self.names) - 1))
        self._normal = self._normalized_names()
        """Those that the tokenizer finds in normalized text, where look-alikes have become them."""
        self._hidden = re.compile(f"{STAND_IN}([{chr(FIRST)}-{last}])")
        self._plain: dict[str, list[int]] = {}

    def hide(self, content: str) -> str:
        """Returns content with a stand-in for each control token that it spells."""
        hidden = self._spelled.sub(lambda match: STAND_IN + self._places[match[0]], content)
        if self._normal:
            plain = self._normalizer.normalize_str(hidden)
            for spelled, name in self._normal.items():
                if spelled in plain:
                    hidden = plain = plain.replace(spelled, STAND_IN + self._places[name])
        return hidden

    def _normalized_names(self) -> dict[str, str]:
        """Returns the control tokens that are looked for in normalized text."""
        if self._normalizer is None:
            return {}
        tokens = self._tokenizer.added_tokens_decoder.values()
        names = {token.content for token in tokens if token.normalized} & set(self.names)
        normal = {self._normalizer.normalize_str(name): name for name in sorted(names)}
        return {spelled: name for spelled, name in normal.items() if spelled}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of texts, without BOS; stand-ins give those of plain text."""
        if not any(STAND_IN in text for text in texts):
            return self._ids(texts)
        split = [self._hidden.split(text) for text in texts]
        pieces: list[str] = []
        for parts in split:
            pieces += parts[::2]
        plain = iter(self._ids(pieces))
        rows: list[list[int]] = []
        for parts in split:
            row: list[int] = []
            for i, part in enumerate(parts):
                row += self._plain_ids(part) if i % 2 else next(plain)
            rows.append(row)
        return rows

    def _plain_ids(self, place: str) -> list[int]:
        if place not in self._plain:
            name = self.names[ord(place) - FIRST]
            # Without its first character it is no control token, but may hold another one.
            first, rest = self._ids([name[:1]])[0], self.tokenize([self.hide(name[1:])])[0]
            self._plain[place] = first + rest
        return self._plain[place]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            # Masks of all ones take a third of the time.
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return cast(list[list[int]], encoded["input_ids"])
