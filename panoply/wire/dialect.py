"""From a body to a typed payload: decoding, validation; and what an endpoint is."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from reprlib import Repr
from typing import ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, JsonValue, ValidationError

from panoply.wire.limits import RequestLimits
from panoply.wire.request import Payload, RequestError, ScoreAnswer, ScoreRequest, abbreviate

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 2, 2
"""Shows a value of any size and depth in a few words."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Strict(BaseModel):
    """A part of a payload: no number is taken for a string, and no unknown key is dropped."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DialectPayload(BaseModel, ABC):
    """Payload of one dialect: the request in it, and the answer as its client reads it.

    A key whose value is null is no key. A key that no field reads is refused unless it is known to
    change no score: dropped in silence, it could change one.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Keys that the dialect's clients send and that change no score."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Keys that would change a score or the answer's shape, with what to do instead. A value that
    asks for nothing (false, 0, empty) passes."""

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Returns the keys that fields read, by all of their names."""
        names: set[str] = set()
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            names |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
        return frozenset(names)

    @abstractmethod
    def request(self) -> ScoreRequest:
        """Returns the neutral request."""

    @abstractmethod
    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the answer's payload as the client reads it.

        Raises:
            RequestError: a score failed, and the dialect cannot say so for that one alone.
        """


class ModelPayload(DialectPayload):
    """Payload that may name one model."""

    model: str | None = None

    def models(self) -> tuple[str, ...]:
        """Returns the model's name, where there is one."""
        return () if self.model is None else (self.model,)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Place of a dialect: `POST` a payload to one of `paths`, also behind `/models/{name}`."""

    dialect: str
    paths: tuple[str, ...]
    payload: type[DialectPayload]
    refuse: Callable[[RequestError], tuple[int, Payload]]
    """Returns status and payload of an error, as the dialect's clients know them."""
    keys: frozenset[str] = frozenset()
    """Keys that mark a payload as this dialect's, where dialects share a path."""

    def parse(self, payload: JsonValue) -> DialectPayload:
        """Returns the payload, typed and checked.

        Raises:
            RequestError: 400, naming each key that is wrong.
        """
        if not isinstance(payload, dict):
            raise RequestError(f"the body must be a JSON object, got {_SHORT.repr(payload)}")
        kind, keys = self.payload, self.payload.keys()
        present = {key: value for key, value in payload.items() if value is not None}
        if wrong := [key for key, value in present.items() if value and key in kind.refused]:
            raise RequestError(abbreviate(f"`{key}`: {kind.refused[key]}" for key in wrong))
        if unread := sorted(present.keys() - keys - kind.harmless - kind.refused.keys()):
            names = abbreviate(f"`{_place([key])}`" for key in unread)
            raise RequestError(
                f"{names}: not read by `{self.paths[0]}`, and what is dropped without a word may "
                f"change a score: leave it out. Keys that are read: {sorted(keys)}"
            )
        try:
            return kind.model_validate({key: present[key] for key in present if key in keys})
        except ValidationError as error:
            raise RequestError(explain(error)) from error


def status_name(status: int) -> str:
    """Returns an HTTP status as OpenAI's servers name it: 404 is NotFoundError."""
    words = HTTPStatus(status).phrase.title().replace("-", " ").split()
    return "".join(words).removesuffix("Error") + "Error"


def decode(body: bytes, limits: RequestLimits) -> JsonValue:
    """Returns the JSON value of a body.

    Raises:
        RequestError: 413 if it is too large or holds too many values; 400 if it is not UTF-8, not
            JSON, nested too deeply or holds a number that is not finite.
    """
    limits.check_structure(body)
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


def explain(error: ValidationError) -> str:
    """Returns the faults of a payload: each key, the reason, and its value in short."""
    faults = error.errors(include_url=False, include_context=False)
    return abbreviate(
        f"`{_place(wrong['loc'])}`: {wrong['msg']}, got {_SHORT.repr(wrong['input'])}"
        for wrong in faults
    )


def _place(keys: Sequence[int | str]) -> str:
    # A key may be no valid text, and the message has to be.
    return ".".join(ascii(key).strip("'") for key in keys) or "body"
