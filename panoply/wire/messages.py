"""Conversations and token ids as payloads hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from panoply.wire.dialect import Strict, explain
from panoply.wire.request import Chat, Item, Message, RenderedText, Role, Tokens


class _Part(Strict):
    """Rows of a data set have every key of any of them: one without a value is none."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        pairs = cast(Mapping[Any, Any], value).items()
        return {key: v for key, v in pairs if key in needed or not _is_empty(v)}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


class TextPart(_Part):
    """A piece of a message; other kinds (images, audio) are refused."""

    type: Literal["text"]
    text: str


class Turn(_Part):
    """A message. Keys that change what it says (tool_calls, reasoning) are refused, not dropped."""

    role: Role
    content: str | list[TextPart]
    name: str | None = None
    """Of the speaker or the tool; the model's template decides whether it is written."""

    def message(self) -> Message:
        """Returns it as a message, parts on lines of their own as vLLM joins them."""
        return {
            "role": self.role,
            "content": joined(self.content),
            **({"name": self.name} if self.name else {}),
        }


def joined(content: str | list[TextPart]) -> str:
    """Returns content as one text, parts on lines of their own as vLLM joins them."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _ends_before_response(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[-1].role not in ("user", "tool"):
        raise ValueError("a prompt must end with a user or tool turn; responses stand apart")
    return turns


def _ends_with_response(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[-1].role != "assistant":
        raise ValueError(
            "the messages must end with the reply that is scored: add it as a turn of the role "
            "'assistant'"
        )
    _ends_before_response(turns[:-1])
    return turns


Turns: TypeAlias = Annotated[list[Turn], Field(fail_fast=True)]
Prompt: TypeAlias = Annotated[Turns, AfterValidator(_ends_before_response)]
Conversation: TypeAlias = Annotated[Turns, AfterValidator(_ends_with_response)]
"""A prompt and one response, as its last turn."""


class WithPrompt(Strict):
    """A part of a payload; a prompt that cannot be read costs no other part its answer."""

    _reason: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _apart(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            if any(wrong["loc"][:1] != ("prompt",) for wrong in error.errors()):
                raise
            # An empty turn stands where the prompt was, and nothing is asked of a model.
            part = handler({**value, "prompt": [{"role": "user", "content": ""}]})
            part._reason = explain(error)
            return part

    @property
    def reason(self) -> str:
        """Why the prompt cannot be read; empty where it can."""
        return self._reason


def check_readable(parts: Sequence[WithPrompt]) -> None:
    """Checks that the prompt of some part can be read.

    Raises:
        ValueError: there are parts, and none can be read.
    """
    if parts and all(part.reason for part in parts):
        raise ValueError(f"no prompt can be read; of the first, {parts[0].reason}")


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
        return (RenderedText("", (given,)),)
    if given and isinstance(given[0], int):
        return (Tokens((tuple(cast(list[int], given)),)),)
    return tuple(
        RenderedText("", (one,)) if isinstance(one, str) else Tokens((tuple(cast(list[int], one)),))
        for one in given
    )
