"""Keys that no message prints, and addresses that hold none.

    vllm+https://HOST/classify?key_variable=SKYWORK_KEY#skywork

Addresses are written into settings, logs, records and pages. So none may hold a password or a key:
it names the environment variable that holds the key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

KEY_VARIABLE = "key_variable"
"""Parameter of an address that names the variable of its key; it is never sent."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Names of variables, in capitals: what stands in the place of a name is mostly the key itself."""
SECRET_NAME = re.compile(
    r"key|token|secret|passw|passphrase|pwd|auth|cred|sig|code|jwt|session|bearer|hmac|login"
    r"|^(?:pass|pw|otp|sas|sid)$",
    re.IGNORECASE,
)
"""Names of parameters that hold secrets in the interfaces of known servers."""
HOST = re.compile(r"[\w.:-]+")
NAMED_VALUE = re.compile(r"([^?&;/#=\s]+)=")
"""Names that have a value, in any part of an address."""
USER = re.compile(r"(?<=://)\S*@")
PARAMETERS = re.compile(r"\?[^\s'\"]+")
SECRET_VALUE = re.compile(
    r"((?:(?:api|access|account|secret|private)[-_]?key|secret|passw(?:or)?d|pwd|authorization"
    r"|(?<![\w-])(?:auth|access|bearer|api|refresh)?[-_]?token(?==))[\"']?\s*[=:]\s*[\"']?"
    r"(?:bearer\s+|basic\s+)?)[^\s\"',;&]+",
    re.IGNORECASE,
)
"""Values that stand behind the names of secrets, in headers, settings and JSON."""


@dataclass(frozen=True, slots=True)
class Address:
    """HTTP address of another server, which holds no secret."""

    url: str
    """What is asked: without the fragment, and without `key_variable`."""
    key_variable: str
    """Environment variable of the key that the server asks for; empty: it asks for none."""
    model: str
    """Fragment: the name of the model there; empty where the server has one."""

    @classmethod
    def parse(cls, text: str, setting: str) -> Address:
        """Returns the parts of an address.

        Args:
            text: `URL#MODEL`, with `?key_variable=NAME` where the server asks for a key.
            setting: name of the setting that holds it, for the message.

        Raises:
            ValueError: it holds a user name, a password or a key. The message repeats none of it.
        """
        try:
            parts = urlsplit(text)
        except ValueError:  # its message has what stands for the host, as a password may
            raise ValueError(
                f"`{setting}` names an address that is none: http://HOST:PORT/PATH#MODEL, with "
                f"?{KEY_VARIABLE}=NAME before '#' where the server asks for a key"
            ) from None
        host = HOST.fullmatch(parts.hostname or "")
        what = f"`{setting}` names an address on {host[0] if host else 'another server'}"
        advice = (
            "put that into an environment variable, and name the variable at the end of the "
            f"address: {parts.scheme or 'http'}://HOST/PATH?{KEY_VARIABLE}=NAME#MODEL"
        )
        # A password with a slash or '#' ends the host early: the rest looks like path or model.
        plain = _decoded(text)
        if "@" in plain or not _has_port(parts):
            raise ValueError(
                f"{what} with '@' or a port that is no number, as of a user name and password, "
                f"which logs and records would show: {advice}"
            )
        for name in NAMED_VALUE.findall(plain):
            if name != KEY_VARIABLE and SECRET_NAME.search(name):
                raise ValueError(
                    f"{what} with the parameter {name[:40]!r}, whose value logs and records would "
                    f"show: {advice}. The key is then sent as `Authorization: Bearer KEY`"
                )
        if "?" in parts.fragment:
            raise ValueError(f"{what} with parameters behind '#': {advice}")
        variable = ""
        kept: list[tuple[str, str]] = []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name != KEY_VARIABLE:
                kept.append((name, value))
            elif VARIABLE.fullmatch(value):
                variable = value
            else:
                raise ValueError(
                    f"{what}, whose `{KEY_VARIABLE}` is no name of an environment variable "
                    f"(capitals, digits and '_'); a key itself must not stand there: {advice}"
                )
        url = urlunsplit(parts._replace(query=urlencode(kept), fragment=""))
        return cls(url, variable, parts.fragment)


def check_file_uri(uri: str, setting: str) -> None:
    """Checks that the URI of a file holds no secret, which records of a run would show.

    Args:
        uri: of a file, or its path.
        setting: name of the setting that holds it, for the message.

    Raises:
        ValueError: it holds a password or a key. The message repeats none of it.
    """
    _, mark, place = _decoded(uri).partition("://")
    user, at, _ = place.partition("@")
    # A revision stands behind '@' too, in `hf://datasets/OWNER/NAME@REVISION/FILE`.
    has_user = bool(at) and (":" in user or "/" not in user)
    if mark and (has_user or any(map(SECRET_NAME.search, NAMED_VALUE.findall(place)))):
        raise ValueError(
            f"`{setting}` names a file with a user name, a password or a key, which logs and "
            "records would show: leave it out, and give keys where the library of its scheme looks "
            "for them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a role of the node); a signed "
            "address is fetched before"
        )


def _decoded(text: str) -> str:
    """Returns a text without percent-encoding, of which one may hide another."""
    while (plain := unquote(text)) != text:
        text = plain
    return text


def _has_port(parts: SplitResult) -> bool:
    """Returns whether what stands for a port is a number, or nothing stands there."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys by the environment variables that hold them; only the names are printed."""

    values: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def read(cls, variables: Iterable[str]) -> Keys:
        """Returns the keys of this process's environment.

        Raises:
            ValueError: a variable is not set, so that nobody could be asked or admitted.
        """
        values: dict[str, str] = {}
        for variable in variables:
            if not os.environ.get(variable):
                raise ValueError(
                    f"environment variable {variable!r} holds no key: set it where the command is "
                    "started"
                )
            values[variable] = os.environ[variable]
        return cls(values)

    def __repr__(self) -> str:
        return f"Keys({sorted(self.values)})"

    def only(self, variables: Iterable[str]) -> Keys:
        """Returns the keys of some variables alone."""
        return Keys({name: self.values[name] for name in variables if name in self.values})

    def export(self) -> None:
        """Sets the variables of this process, which alone got the keys."""
        os.environ.update(self.values)


NO_KEYS = Keys()


def authorization(key: str) -> str:
    """Returns the header's value for a key; one that names its scheme (`Basic ...`) is whole."""
    return key if " " in key else f"Bearer {key}"


def without_secrets(text: str) -> str:
    """Returns a text whose addresses have no user name, password or parameters.

    Values behind the names of secrets are replaced by `***`.
    """
    return SECRET_VALUE.sub(r"\g<1>***", PARAMETERS.sub("", USER.sub("", text)))
