"""Conversations and token ids in payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from panoply.wire.conversation import THOUGHTS, check_prompt_end, is_empty, read_message
from panoply.wire.dialect import Strict, explain
from panoply.wire.request import Chat, Item, Message, RenderedText, Role, Tokens


class _Part(Strict):
    """Part of a message. Optional keys without a value are dropped: rows of data sets have all."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        pairs = cast(Mapping[Any, Any], value).items()
        return {key: v for key, v in pairs if key in needed or not is_empty(v)}


class TextPart(_Part):
    """Piece of a message that is text; other kinds (images, audio) are refused."""

    type: Literal["text"]
    text: str


class Turn(Strict):
    """Message. Keys that change its content (tool_calls, reasoning) are refused, not dropped.

    `developer` is read as `system`, and `function` as `tool`.
    """

    role: Role
    content: str | list[TextPart]
    name: str | None = None
    """Name of the speaker or tool; the model's template decides whether it is written."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> dict[str, str]:
        return read_message(value)

    def message(self) -> Message:
        """Returns the neutral message."""
        message = {"role": self.role, "content": joined(self.content)}
        if self.name:
            message["name"] = self.name
        return message


def joined(content: str | list[TextPart]) -> str:
    """Returns content as one text, parts on lines of their own as vLLM joins them."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _ends_before_response(turns: list[Turn]) -> list[Turn]:
    check_prompt_end([{"role": turn.role} for turn in turns])
    return turns


def _ends_with_response(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[-1].role != "assistant":
        raise ValueError(
            "the messages must end with the reply that is scored: add it as a turn of the role "
            "'assistant'"
        )
    _ends_before_response(turns[:-1])
    return turns


_Turns: TypeAlias = Annotated[list[Turn], Field(fail_fast=True)]
PromptTurns: TypeAlias = Annotated[_Turns, AfterValidator(_ends_before_response)]
DialogTurns: TypeAlias = Annotated[_Turns, AfterValidator(_ends_with_response)]
"""A prompt and one response, as its last turn."""


class WithPrompt(Strict):
    """Part of a payload whose prompt may be unreadable, which costs no other part its answer."""

    _reason: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _apart(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            if any(wrong["loc"][:1] != ("prompt",) for wrong in error.errors()):
                raise
            # An empty turn takes the prompt's place; the part is never sent to a model.
            part = handler({**value, "prompt": [{"role": "user", "content": ""}]})
            part._reason = explain(error)
            return part

    @property
    def reason(self) -> str:
        """Reason why the prompt cannot be read; empty where it can."""
        return self._reason


def check_readable(parts: Sequence[WithPrompt]) -> None:
    """Checks that at least one part's prompt can be read.

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


def read_turns(kind: TypeAdapter[Any], turns: Sequence[Any]) -> tuple[Message, ...]:
    """Returns a trainer's turns as messages, without what the policy thought before its reply.

    Raises:
        ValueError: a turn cannot be read, or they do not end as they should.
    """
    replies: list[Any] = []
    for turn in turns:
        if isinstance(turn, Mapping):
            keys = cast(Mapping[Any, Any], turn).items()
            replies.append({key: value for key, value in keys if key not in THOUGHTS})
        else:
            replies.append(turn)
    try:
        return messages(kind.validate_python(replies))
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def dialog(turns: list[Turn]) -> Chat:
    """Returns a prompt and its response, which is the last turn."""
    *prompt, response = messages(turns)
    return Chat(tuple(prompt), (response["content"],))


def user_turn(text: str, responses: list[str]) -> Chat:
    """Returns a text as a user's turn, and the responses to it."""
    return Chat(({"role": "user", "content": text},), tuple(responses))


def items_of(conversations: TextOrTokens) -> tuple[Item, ...]:
    """Returns each conversation as an item of its own; those that share a prefix meet later."""
    if isinstance(conversations, str):
        return (RenderedText("", (conversations,)),)
    if conversations and isinstance(conversations[0], int):
        return (Tokens((tuple(cast(list[int], conversations)),)),)
    items: list[Item] = []
    for conversation in conversations:
        if isinstance(conversation, str):
            items.append(RenderedText("", (conversation,)))
        else:
            items.append(Tokens((tuple(cast(list[int], conversation)),)))
    return tuple(items)
