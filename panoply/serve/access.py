"""Decides who may ask what: API keys with names, and how much each of them may ask.

A key is known by its SHA-256 hash alone, so that nothing here can be printed or logged that opens a
model.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panoply.wire.request import RequestError

NOBODY = "none"
"""Name of whoever sends no key that is known, in metrics and rates."""
BURST_SECONDS = 10.0
"""Seconds of its rate that a key may ask at once."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sends a request."""

    name: str = NOBODY
    """Name of the key."""
    opens: frozenset[str] = frozenset()
    """Models that the key opens."""


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    name: str
    model: str


class KeyRing:
    """API keys of the models that ask for one.

    Args:
        sources: places of each model's keys, by the model's name: environment variables that hold a
            key each, or absolute paths of files with a key on every line.

    Raises:
        ValueError: a place holds no key, so nobody could ever ask this model.
    """

    def __init__(self, sources: Mapping[str, Sequence[str]]) -> None:
        self.sources = sources
        self.protected = frozenset(sources)
        """Names of the models that ask for a key."""
        self._keys: list[_Key] = []
        self.reload()
        for model, places in sources.items():
            for place in places:
                if not any(
                    key.model == model and key.name == key_name(place) for key in self._keys
                ):
                    raise ValueError(
                        f"{place!r} holds no API key for {model!r}: set the variable on the nodes, "
                        "or write a key on a line of the file"
                    )

    def reload(self) -> None:
        """Reads all keys again: a line added to a file is a key from then on, a line removed none.

        Raises:
            ValueError: a file cannot be read; the keys stay as they were.
        """
        keys: list[_Key] = []
        for model, places in self.sources.items():
            for place in places:
                for secret in _secrets_at(place):
                    keys.append(_Key(_digest(secret), key_name(place), model))
        self._keys = keys

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Returns who sends a request, by its `Authorization` or `X-API-Key`.

        Args:
            headers: by their name in lower case.
        """
        digests = [_digest(sent) for sent in _sent_keys(headers)]
        if not self._keys or not digests:
            return Caller()
        names: list[str] = []
        opens: set[str] = set()
        for key in self._keys:  # all of them, so that the time tells nothing
            matches = [hmac.compare_digest(key.digest, digest) for digest in digests]
            if True in matches:
                names.append(key.name)
                opens.add(key.model)
        return Caller(names[0], frozenset(opens)) if names else Caller()

    def check(self, caller: Caller, models: Sequence[str]) -> None:
        """Checks that a caller may ask models.

        Raises:
            RequestError: 401, one of them asks for a key that was not sent.
        """
        for model in models:
            if model in self.protected and model not in caller.opens:
                raise RequestError(
                    f"model {model!r} asks for its API key, as `Authorization: Bearer KEY` or as "
                    "`X-API-Key: KEY`",
                    401,
                )


def key_name(place: str) -> str:
    """Returns the name of the keys at a place: the variable, or the file without its folder."""
    return place.rpartition("/")[2]


class RateLimits:
    """Budgets of work by key, which fill at a rate and may be overdrawn by one request.

    Args:
        rate: characters a second, of all fields of a request and for each model that it names; 0:
            no limit.
        clock: seconds, from any start.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.clock = rate, clock
        self._budgets: dict[str, tuple[float, float]] = {}
        """Characters left, and the time when that was so, by the key's name."""

    def check(self, caller: Caller) -> None:
        """Checks that a caller's budget is not overdrawn.

        Raises:
            RequestError: 429, with the seconds after which it is not.
        """
        left = self._left(caller)
        if self.rate and left < 0:
            raise RequestError(
                f"the key {caller.name!r} has asked {-left:.0f} characters more than its rate of "
                f"{self.rate:g} a second allows",
                429,
                max(1.0, -left / self.rate),
            )

    def charge(self, caller: Caller, num_characters: int) -> None:
        """Takes the work of a request from its caller's budget."""
        if self.rate:
            self._budgets[caller.name] = self._left(caller) - num_characters, self.clock()

    def _left(self, caller: Caller) -> float:
        most, now = self.rate * BURST_SECONDS, self.clock()
        left, since = self._budgets.get(caller.name, (most, now))
        return min(most, left + (now - since) * self.rate)


def _secrets_at(place: str) -> list[str]:
    """Returns the keys at a place.

    Raises:
        ValueError: it is a file that cannot be read.
    """
    if not place.startswith("/"):
        lines = [os.environ.get(place, "")]
    else:
        if Path(place).exists() and not Path(place).is_file():  # a pipe is empty the second time
            raise ValueError(f"the keys in {place!r} cannot be read: it is no regular file")
        try:
            lines = Path(place).read_text().splitlines()
        except (OSError, ValueError) as error:
            why = f"the keys in {place!r} cannot be read: {type(error).__name__}"
            raise ValueError(why) from None
    # White space around a key is its file's or the shell's: no header can carry it.
    return [line.strip() for line in lines if line.strip()]


def _sent_keys(headers: Mapping[str, str]) -> list[str]:
    """Returns what may be a key in the headers; a proxy may have added an `Authorization`."""
    words = headers.get("authorization", "").split(None, 1)
    if len(words) == 2 and words[0].lower() == "bearer":
        bearer = words[1].strip()
    else:  # a bare value is taken for a key too: some clients send it so
        bearer = words[0] if len(words) == 1 else ""
    return [sent for sent in (bearer, headers.get("x-api-key", "").strip()) if sent]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()
