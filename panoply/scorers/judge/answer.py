"""A judge's answer, as it is read from an OpenAI-compatible server's body and kept in the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from panoply.wire.dialect import explain

MOST_CHARACTERS = 200_000
"""Characters of an answer beyond which it is none: it is searched for a verdict."""
MASS_TOLERANCE = 1e-2
"""Excess over 1 that the probabilities of one token may add up to, by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Token of an answer, and what might have stood in its place."""

    text: str
    probabilities: Mapping[str, float]
    """Probability by token, as many as the server tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAnswer:
    """Holds what a judge wrote, and what it cost."""

    text: str
    finish: str
    """Reason why the answer ended, in OpenAI's words: "stop", "length", ..."""
    input_tokens: int | None = None
    """Tokens that the judge read; None where the server does not tell."""
    output_tokens: int | None = None
    """Tokens that the judge wrote; None where the server does not tell."""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    """Tokens of the answer; empty where the server returns no `logprobs`."""

    def to_record(self) -> bytes:
        """Returns the answer as the content of a record."""
        return _ANSWER.dump_json(self)

    @classmethod
    def of_record(cls, content: bytes) -> JudgeAnswer:
        """Returns the answer of a record, to the last bit.

        Raises:
            ValueError: the record is damaged.
        """
        return _ANSWER.validate_json(content)


class _Part(BaseModel):
    """Part of a server's body that is read; other keys are passed over."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Alternative(_Part):
    token: str
    logprob: Annotated[float, Field(le=1e-3)]  # -inf is a probability of 0


class _Drawn(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(_Part):
    content: list[_Drawn] | None = None


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Part):
    prompt_tokens: Annotated[int, Field(ge=0, le=10**9)]
    completion_tokens: Annotated[int, Field(ge=0, le=10**9)] = 0


class _Completion(_Part):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: _Usage | None = None


_ANSWER = TypeAdapter(JudgeAnswer)


def read_completion(body: bytes) -> JudgeAnswer:
    """Returns the answer in the body of a chat completion.

    The `openai` client itself takes any JSON for a completion.

    Raises:
        ValueError: it is none: a page, another protocol, or numbers that cannot be.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no chat completion: {explain(error)}") from error
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or ""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"an answer of {len(text)} characters, at most {MOST_CHARACTERS}")
    drawn = (choice.logprobs.content or []) if choice.logprobs else []
    return JudgeAnswer(
        text=text,
        finish="refusal" if choice.message.refusal else choice.finish_reason or "",
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
        tokens=tuple(map(_token, drawn)),
    )


def _token(drawn: _Drawn) -> Token:
    """Returns a token with its alternatives, of which it may be one itself.

    Raises:
        ValueError: their probabilities add up to more than 1.
    """
    probabilities = {drawn.token: math.exp(min(drawn.logprob, 0.0))}
    for other in drawn.top_logprobs:
        probabilities[other.token] = math.exp(min(other.logprob, 0.0))
    mass = sum(probabilities.values())
    if mass > 1 + MASS_TOLERANCE:
        raise ValueError(f"the probabilities of a token add up to {mass:.3f}")
    return Token(text=drawn.token, probabilities=probabilities)
