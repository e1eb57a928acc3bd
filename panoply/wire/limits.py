"""Limits of a request, in the units of the work that it makes: checked before that work is done.

| work | unit | checked |
| --- | --- | --- |
| holding and parsing a body | bytes; texts, objects and numbers in it | before it is parsed |
| answering | responses, models | before any model is called |
| rendering and tokenizing | characters, of a prompt with every one of its responses | as above |
| scoring | tokens, a prompt's once for its responses | in the replica, before they are queued |

A label counts for each of its responses: functions and other servers get it as often.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from panoply.wire.request import Chat, Item, RenderedText, RequestError, ScoreRequest, Tokens

CRUDE_VALUES = 10_000
"""Marks of JSON's structure below which a body is small, wherever they stand in it."""
TURN_CHARACTERS = 32
"""Characters that a turn of a prompt counts beside its own: those that a template writes around
it."""
WRITTEN_OUT = {"\ufdfa": 17, "\ufdfb": 7}
"""Characters that Unicode's compatibility forms, which some tokenizers apply, write out, and by how
many more: phrases of 18 and of 8. No other becomes more than 6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits of one request."""

    max_bytes: int = 16 * 2**20
    """Maximum bytes of the body."""
    max_responses: int = 4096
    """Maximum responses per model, and maximum items."""
    max_models: int = 16
    """Maximum models of one request."""
    max_characters: int = 4_000_000
    """Maximum characters of all fields, or token ids; a prompt counts once for all of its
    responses."""
    max_text: int = 500_000
    """Maximum characters of one conversation, a prompt with one response."""
    max_rendered: int = 16_000_000
    """Maximum characters rendered: every prompt as often as it has responses."""
    max_strings: int = 250_000
    """Maximum texts in a body, keys included."""
    max_containers: int = 100_000
    """Maximum objects and lists in a body."""
    max_numbers: int = 1_100_000
    """Maximum values in a body."""

    def check_structure(self, body: bytes) -> None:
        """Checks that parsing a body takes no longer than the texts in it are worth.

        A body of lists, keys or numbers alone costs a hundred times what one of texts does.

        Raises:
            RequestError: 413, with what to do.
        """
        if len(body) > self.max_bytes:
            raise _too_much(len(body), "bytes", self.max_bytes)
        if body.count(b",") + body.count(b"[") + body.count(b"{") <= CRUDE_VALUES:
            return
        # Marks inside of texts are none: escaped quotes go first, then what stands between quotes.
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        num_strings = plain.count(b'"') // 2
        if num_strings > self.max_strings:
            raise _too_much(num_strings, "texts and keys", self.max_strings)
        marks = b"".join(plain.split(b'"')[::2])
        num_containers = marks.count(b"[") + marks.count(b"{")
        if num_containers > self.max_containers:
            raise _too_much(num_containers, "objects and lists", self.max_containers)
        num_values = marks.count(b",") + num_containers
        if num_values > self.max_numbers:
            raise _too_much(num_values, "values", self.max_numbers)

    def check(self, request: ScoreRequest) -> ScoreRequest:
        """Returns the request if it keeps the limits.

        Raises:
            RequestError: 413, with what to do.
        """
        num_texts = max(request.num_responses, len(request.items)) + request.num_unread
        if num_texts > self.max_responses:
            raise _too_much(num_texts, "texts", self.max_responses)
        if len(request.models) > self.max_models:
            raise _too_much(len(request.models), "models", self.max_models)
        sizes = [ItemSize.of(item) for item in request.items]
        num_characters = sum(size.characters for size in sizes) + sum(map(len, request.weights))
        if num_characters > self.max_characters:
            raise _too_much(num_characters, "characters or tokens", self.max_characters)
        longest = max((size.longest for size in sizes), default=0)
        if longest > self.max_text:
            raise RequestError(
                f"a conversation of {longest} characters or tokens, at most {self.max_text}: "
                "shorten it",
                413,
            )
        num_rendered = sum(size.rendered for size in sizes)
        if num_rendered > self.max_rendered:
            raise RequestError(
                f"{num_rendered} characters, a prompt counted with each of its responses, at most "
                f"{self.max_rendered}: send fewer responses to a long prompt at once",
                413,
            )
        return request


@dataclass(frozen=True, slots=True)
class ItemSize:
    """Size of an item, in characters of its texts or in token ids."""

    characters: int
    """Characters of all fields, the prompt's once."""
    rendered: int
    """Characters of all conversations, each with the prompt."""
    longest: int
    """Characters of the longest conversation."""

    @classmethod
    def of(cls, item: Item) -> ItemSize:
        """Returns the size of an item."""
        if isinstance(item, Tokens):
            sizes = list(map(len, item.responses))
            return cls(sum(sizes), sum(sizes), max(sizes, default=0))
        sizes = list(map(text_size, item.responses))
        total, longest = sum(sizes), max(sizes, default=0)
        if isinstance(item, Chat):
            written = sum(sum(map(text_size, message.values())) for message in item.prompt)
            prompt = written + TURN_CHARACTERS * len(item.prompt)
        else:
            prompt = text_size(item.prompt)
        labels = label_size(item) * len(sizes)
        return cls(prompt + total + labels, prompt * len(sizes) + total, prompt + longest)


def work_of(request: ScoreRequest) -> int:
    """Returns the characters that all models of a request read, a prompt's once."""
    return sum(ItemSize.of(item).characters for item in request.items) * len(request.models)


def text_size(text: str) -> int:
    """Returns the characters of a text, as a tokenizer may write them out."""
    return len(text) + sum(more * text.count(character) for character, more in WRITTEN_OUT.items())


def label_size(item: Chat | RenderedText) -> int:
    """Returns the characters of an item's label, as JSON where it is no text."""
    if item.label is None:
        return 0
    if isinstance(item.label, str):
        return len(item.label)
    return len(json.dumps(item.label, ensure_ascii=False))


def _too_much(num: int, unit: str, most: int) -> RequestError:
    return RequestError(
        f"{num} {unit} in one request, at most {most}: send several requests, or shorten it", 413
    )
