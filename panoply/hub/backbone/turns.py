"""Turn markers of a chat template, learned from a few renders of it.

The last reply of a rendered text begins behind the last assistant header. That is searched for in
characters: among token ids its last line break may have merged with the reply's first one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias

from panoply.model.tree import common_prefix
from panoply.wire.chat_templates import without_end

Conversation: TypeAlias = Sequence[Mapping[str, str]]
Third: TypeAlias = Literal["user", "tool"]
"""Role of a conversation's third turn."""


@dataclass(frozen=True, slots=True)
class ReplySpan:
    """Place of the last reply in a text, in characters."""

    header: int
    """Index of the header's first character."""
    reply: int
    """Index of the reply's first character, at which the header ends."""


class Turns:
    """The texts by which a chat template opens, closes and changes turns.

    Args:
        tokenizer: names the tokens that end a sequence.
        render: writes a conversation, and the header of the assistant's turn behind it if the
            second argument is true. It may write what the tokens of the template's text decode to,
            which is another text in some tokenizers.
    """

    def __init__(self, tokenizer: Any, render: Callable[[Conversation, bool], str]) -> None:
        self._render = render
        body, opening = self._write("a"), self._write("a", opens=True)
        full, other = self._write("a", "b"), self._write("a", "c")
        at = len(_common(body, opening, full, other))
        self.header = _common(opening[at:], full[at:], other[at:])
        """Text that opens the assistant's turn; empty where a template has none."""
        self.prefix = opening[at + len(self.header) :]
        """Text that a policy's reply is made to begin with (`<think>`), behind the header."""
        self.closing = _common_end(full, other)
        """Text that closes the assistant's turn."""
        self.ends = _ending_tokens(tokenizer, self.closing)
        """Tokens that end a reply."""
        tail = full[at + len(self.header) :]
        self._headed = self._before_replies(tail)
        self._changes = self._after_replies()
        self.bos, self._starts = self._beginnings(tokenizer.bos_token or "")
        """The tokenizer's BOS where all that the template writes begins with it, else empty."""

    @property
    def shown(self) -> str:
        """The assistant's header, as errors show it."""
        return self.header or next(iter(self._headed), "")

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that the template writes around turns."""
        return (self.header, self.closing, self.bos, *self._headed, *self._changes)

    def place(self, text: str, prompt_size: int = 0) -> ReplySpan:
        """Returns the place of the last reply in a rendered conversation.

        Args:
            text: a conversation whose last turn is the assistant's, closed or not.
            prompt_size: characters of it that are the prompt; 0: unknown.

        Raises:
            ValueError: there is no header, or the last one may be content.
        """
        at = self._last_header(text[: prompt_size or None])
        if prompt_size and (at is None or self._holds_turns(text[at.reply : prompt_size])):
            at = self._header_across(text, prompt_size)
        if at is None:
            missing = f"has no assistant header of the model's template ({self.shown!r})"
            if prompt_size:
                raise ValueError(f"the prompt {missing} that opens its last turn")
            raise ValueError(f"the text {missing}")
        if prompt_size:
            return at
        header = f"the text's last assistant header ({self.shown!r})"
        if not text.endswith(self._headed, 0, at.reply):
            raise ValueError(f"{header} is not behind the end of a turn, and may be content")
        before = self._last_headed(text[: at.reply - 1])
        if before >= 0 and self._changes and not self._has_change(text[before : at.header]):
            raise ValueError(f"{header} follows an assistant's turn, and may be content of it")
        if self._holds_turns(self.reply(text[at.reply :])):
            raise ValueError(f"{header} does not open the last turn: another one is behind it")
        return at

    def reply(self, text: str) -> str:
        """Returns the text behind a header, without the text that closes the turn."""
        return self.without_end(text.removesuffix(self.closing))

    def closed(self, text: str, start: int) -> str:
        """Returns a text whose reply begins at `start`, closed as the template closes it."""
        return text[:start] + self.reply(text[start:]) + self.closing

    def without_end(self, reply: str) -> str:
        """Returns a reply without the tokens that ended it, and the white space behind them."""
        return without_end(reply, self.ends)

    def lacks_bos(self, text: str) -> bool:
        """Returns whether a text of the template has lost its first token, and that alone.

        Some clients take it off because it is the tokenizer's BOS. The template writes no text
        without it, so that a text which goes on as the template does once began with it.
        """
        return bool(self.bos) and text.startswith(self._starts) and self.shown in text

    def _write(self, *contents: str, third: Third = "user", opens: bool = False) -> str:
        roles = ("user", "assistant", third, "assistant")
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return self._render(turns, opens)

    def _before_replies(self, tail: str) -> tuple[str, ...]:
        """Returns the texts that may precede a reply: the end of another turn and the header.

        Args:
            tail: text behind the header where the reply is "b".
        """
        pairs = [(self._write("a", "b"), self._write("c", "b"))]
        pairs += self._all("tool", ("a", "b", "c", "b"), ("a", "b", "d", "b"))
        same = [_common_end(first, other) for first, other in pairs if first != other]
        headed = [end.removesuffix(tail) for end in same if end.endswith(self.header + tail)]
        # What closes a reply too says nothing of the turn before one.
        return tuple(text for text in dict.fromkeys(headed) if text not in self.closing)

    def _after_replies(self) -> tuple[str, ...]:
        """Returns the texts that may stand between a reply and the content of the next turn."""
        texts = ("a", "b", "c"), ("a", "b", "d"), ("a", "e", "c")
        changes: list[str] = []
        for first, other, moved in (*self._all("user", *texts), *self._all("tool", *texts)):
            rest = first[common_prefix(first, other) :]
            same = _common_end(first, moved)
            if rest and same.endswith(rest):
                changes.append(same.removesuffix(rest))
        return tuple(text for text in dict.fromkeys(changes) if text)

    def _all(self, third: Third, *conversations: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns conversations as the template writes them, all of them or none."""
        try:
            return [tuple(self._write(*contents, third=third) for contents in conversations)]
        except Exception:  # whatever a template raises means that it knows no such turn
            return []

    def _beginnings(self, bos: str) -> tuple[str, tuple[str, ...]]:
        """Returns BOS where every text begins with it, and the texts that may follow it."""
        pairs = [(self._write("a"), self._write("b"))]
        user = {"role": "user", "content": "a"}
        try:
            first = self._render([{"role": "system", "content": "a"}, user], False)
            second = self._render([{"role": "system", "content": "b"}, user], False)
            pairs.append((first, second))
        except Exception:  # the template knows no system turn
            pass
        starts = [_common(*pair) for pair in pairs]
        if not bos or not all(start.startswith(bos) for start in starts):
            return "", ()
        return bos, tuple(start.removeprefix(bos) for start in starts if start != bos)

    def _last_header(self, text: str) -> ReplySpan | None:
        """Returns the last header of a text."""
        if not self.header:
            end = self._last_headed(text)
            return ReplySpan(end, end) if end >= 0 else None
        at = text.rfind(self.header)
        return ReplySpan(at, at + len(self.header)) if at >= 0 else None

    def _header_across(self, text: str, border: int) -> ReplySpan | None:
        """Returns the header that ends behind a border and begins there at the latest."""
        size = len(self.header)
        at = text.rfind(self.header, max(0, border - size + 1), border + size) if size else -1
        return ReplySpan(at, at + size) if at >= 0 else None

    def _last_headed(self, text: str) -> int:
        """Returns the end of the last header behind the end of a turn, -1 if there is none."""
        places = [(text.rfind(headed), len(headed)) for headed in self._headed]
        return max((at + size for at, size in places if at >= 0), default=-1)

    def _has_change(self, text: str) -> bool:
        return any(change in text for change in self._changes)

    def _holds_turns(self, reply: str) -> bool:
        return any(token in reply for token in self.ends) or self._has_change(reply)


def splitting_token(tokenizer: Any, header: str) -> str:
    """Returns the token that the assistant's header begins with, if it splits texts; else nothing.

    A tokenizer takes such tokens out of a text first. What stands before one and what begins with
    it, tokenized apart, give the tokens of the whole.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    first = [token for token in added if token.content and header.startswith(token.content)]
    if not first or not getattr(tokenizer, "is_fast", False):
        return ""
    mark = max(first, key=lambda token: len(token.content))
    takes_neighbors = mark.lstrip or mark.single_word or mark.normalized
    is_part = any(mark.content in token.content for token in added if token is not mark)
    return "" if takes_neighbors or is_part else mark.content


def _ending_tokens(tokenizer: Any, closing: str) -> tuple[str, ...]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    named = (tokenizer.eos_token, tokenizer.pad_token)
    ends = (text for text in added if text in closing or text in named)
    return tuple(sorted(text for text in ends if text.strip()))


def _common(*texts: str) -> str:
    """Returns the longest common beginning of some texts."""
    return reduce(lambda a, b: a[: common_prefix(a, b)], texts)


def _common_end(a: str, b: str) -> str:
    return _common(a[::-1], b[::-1])[::-1]
