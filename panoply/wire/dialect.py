"""How a body becomes a typed call: decoding, validation, limits, and what an endpoint is."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from reprlib import Repr
from typing import ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, JsonValue, ValidationError

from panoply.wire.request import (
    Chat,
    Item,
    Payload,
    RenderedText,
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    Tokens,
)

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 2, 2
"""Shows a value of any size and depth in a few words."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Strict(BaseModel):
    """A part of a payload: no number is taken for a string, and no unknown key is dropped."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DialectPayload(BaseModel, ABC):
    """A payload of one dialect: what it asks, and how its client reads the answer.

    A key whose value is null is no key. A key that no field reads is refused unless it is known to
    change no score: dropped without a word, it could change one.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Keys that the dialect's clients send and that change no score."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Keys that would change a score or the answer's shape here, with what to do instead. A value
    that asks for nothing (false, 0, empty) passes."""

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Returns the keys that fields read, by all of their names."""
        names: list[str] = []
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            names += [str(a) for a in alias.choices] if isinstance(alias, AliasChoices) else [name]
        return frozenset(names)

    @abstractmethod
    def request(self) -> ScoreRequest:
        """Returns what is asked, in our own words."""

    @abstractmethod
    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the answer's payload as the client reads it.

        Raises:
            RequestError: a score failed, and the dialect cannot say so for that one alone.
        """


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A dialect's place: `POST` a payload to one of `paths`, or to `/models/{name}` before it."""

    dialect: str
    paths: tuple[str, ...]
    keys: frozenset[str]
    """Where dialects share a path, a payload with one of these keys is for this one."""
    call: type[DialectPayload]
    refuse: Callable[[RequestError], tuple[int, Payload]]
    """Status and payload of an error, as the dialect's clients know them."""

    def parse(self, payload: JsonValue) -> DialectPayload:
        """Returns the payload as a call.

        Raises:
            RequestError: 400, naming each key that is wrong.
        """
        if not isinstance(payload, dict):
            raise RequestError(f"the body must be a JSON object, got {_SHORT.repr(payload)}")
        call, keys = self.call, self.call.keys()
        present = {key: value for key, value in payload.items() if value is not None}
        if wrong := [key for key, value in present.items() if value and key in call.refused]:
            raise RequestError(_all_of(f"`{key}`: {call.refused[key]}" for key in wrong))
        if unread := sorted(present.keys() - keys - call.harmless - call.refused.keys()):
            names = _all_of(f"`{_place([key])}`" for key in unread)
            raise RequestError(
                f"{names}: not read by `{self.paths[0]}`, and what is dropped without a word may "
                f"change a score: leave it out. Keys that are read: {sorted(keys)}"
            )
        try:
            return call.model_validate({key: present[key] for key in present if key in keys})
        except ValidationError as error:
            raise RequestError(explain(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The most that one request may ask."""

    max_bytes: int = 16 * 2**20
    """Of the body."""
    max_responses: int = 4096
    """Scores that one model owes, and items."""
    max_size: int = 4_000_000
    """Characters of text, or token ids; a prompt counts once for all of its responses."""

    def check(self, request: ScoreRequest) -> ScoreRequest:
        """Returns the request if it keeps the limits.

        Raises:
            RequestError: 413, with what to do.
        """
        num = max(request.num_responses, len(request.items))
        if num > self.max_responses:
            raise RequestError(
                f"{num} texts in one request, at most {self.max_responses}: send several", 413
            )
        size = sum(map(_size, request.items))
        if size > self.max_size:
            raise RequestError(
                f"{size} characters or tokens in one request, at most {self.max_size}: send "
                "several, or shorten the texts",
                413,
            )
        return request


def status_name(status: int) -> str:
    """Returns an HTTP status as OpenAI's servers name it: 404 is NotFoundError."""
    words = HTTPStatus(status).phrase.title().replace("-", " ").split()
    return "".join(words).removesuffix("Error") + "Error"


def decode(body: bytes, limits: RequestLimits) -> JsonValue:
    """Returns the JSON value of a body.

    Raises:
        RequestError: 413 if it is too large; 400 if it is not UTF-8, not JSON, nested too deeply
            or holds a number that is not finite.
    """
    if len(body) > limits.max_bytes:
        raise RequestError(
            f"the body has {len(body)} bytes, at most {limits.max_bytes}: send several requests",
            413,
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start} is wrong") from error
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if _SURROGATE.search(text):  # halves of a character, well written only in pairs
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise RequestError("the body holds half a character: a lone \\ud800 to \\udfff") from error
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _size(item: Item) -> int:
    match item:
        case Chat():
            shared = sum(len(message["content"]) for message in item.prompt)
        case RenderedText():
            shared = len(item.prompt)
        case Tokens():
            shared = 0
    return shared + sum(map(len, item.responses))


def explain(error: ValidationError) -> str:
    """Returns what is wrong with a payload: each key, why, and its value in short."""
    found = error.errors(include_url=False, include_context=False)
    return _all_of(
        f"`{_place(wrong['loc'])}`: {wrong['msg']}, got {_SHORT.repr(wrong['input'])}"
        for wrong in found
    )


def _all_of(reasons: Iterable[str]) -> str:
    """Returns the first reasons in one line, and how many more there are."""
    each = list(reasons)
    more = [f"and {len(each) - 5} more"] if len(each) > 5 else []
    return "; ".join([*each[:5], *more])


def _place(keys: Sequence[int | str]) -> str:
    # A key may be no valid text, and the message has to be.
    return ".".join(ascii(key).strip("'") for key in keys) or "body"
