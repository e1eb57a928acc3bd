"""Conversations and token ids as payloads hold them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, cast

from pydantic import AfterValidator, Field

from panoply.wire.endpoint import Strict
from panoply.wire.request import Chat, Item, Message, Rendered, Role, Tokens


class TextPart(Strict):
    """A piece of a message; other kinds (images, audio) are refused."""

    type: Literal["text"]
    text: str


class Turn(Strict):
    """A message. Keys that a template could read (name, tool_calls) are refused, not dropped."""

    role: Role
    content: str | list[TextPart]

    def message(self) -> Message:
        """Returns role and content, parts on lines of their own as vLLM joins them."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": "\n".join(part.text for part in self.content)}


def _ends_before_response(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[-1].role not in ("user", "tool"):
        raise ValueError("a prompt must end with a user or tool turn; responses stand apart")
    return turns


def _ends_with_response(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[-1].role != "assistant":
        raise ValueError("the messages must end with the assistant turn that is scored")
    _ends_before_response(turns[:-1])
    return turns


Turns: TypeAlias = Annotated[list[Turn], Field(fail_fast=True)]
Prompt: TypeAlias = Annotated[Turns, AfterValidator(_ends_before_response)]
Conversation: TypeAlias = Annotated[Turns, AfterValidator(_ends_with_response)]
"""A prompt and one response, as its last turn."""

# Fail fast: a long list of what is wrong costs an error and not one for each of its elements.
Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True)]
TokenIds: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
ManyTokenIds: TypeAlias = Annotated[list[TokenIds], Field(fail_fast=True)]
TextOrTokens: TypeAlias = str | Texts | TokenIds | ManyTokenIds
"""One conversation or many, rendered as text or tokenized."""


def messages(turns: list[Turn]) -> tuple[Message, ...]:
    """Returns turns as messages."""
    return tuple(turn.message() for turn in turns)


def chat(conversation: list[Turn]) -> Chat:
    """Returns a Conversation as a prompt and its response."""
    *prompt, response = messages(conversation)
    return Chat(tuple(prompt), (response["content"],))


def items_of(given: TextOrTokens) -> tuple[Item, ...]:
    """Returns each conversation as an item of its own; those that share a prefix meet later."""
    if isinstance(given, str):
        return (Rendered("", (given,)),)
    if given and isinstance(given[0], int):
        return (Tokens((tuple(cast(list[int], given)),)),)
    return tuple(
        Rendered("", (one,)) if isinstance(one, str) else Tokens((tuple(cast(list[int], one)),))
        for one in given
    )
