"""What is served, and how: frozen dataclasses. Values are checked when made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from panoply.config import require

Kind: TypeAlias = Literal["model", "function", "remote", "replay"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
FUNCTION, REPLAY = "function:", "replay:"
SERVER = re.compile(r"[A-Za-z0-9]\w{0,63}", re.ASCII)
"""Without a hyphen, which ends it in the names of its applications."""
OWN = "panoply"
DEFAULT_SERVER = "panoply"
STRICT = {"extra": "forbid"}
"""Read by pydantic, where these are made from a file: a misspelled setting is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How long and how much the queue before a model collects."""

    __pydantic_config__ = STRICT

    max_seconds: float = 0.5
    """Seconds that a forward should take, by the speed of those before: what waits is cut into
    batches of about that, but never between responses to one prompt."""
    max_tokens: int = 16_384
    """Most tokens of a batch, shared ones counted once. One prompt's responses beyond it are
    parted."""
    max_wait: float = 0.02
    """Seconds that the first of an idle queue waits for others, as long as they keep coming."""
    max_queued: int = 4096
    """Responses that may wait; beyond, requests are turned away with 429 and Retry-After."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_queued"):
            require(getattr(self, name) >= 1, f"batch.{name}", getattr(self, name), ">= 1")
        require(self.max_seconds > 0, "batch.max_seconds", self.max_seconds, "positive")
        require(0 <= self.max_wait <= 10, "batch.max_wait", self.max_wait, "within [0, 10] seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """Replicas of a model, and what each may take."""

    __pydantic_config__ = STRICT

    min_replicas: int = 1
    """0 lets an idle model go; the first request then waits for it to load."""
    max_replicas: int = 1
    target_requests: float = 64.0
    """Requests that one replica should have in hand; more of them start another replica."""
    idle_seconds: float = 300.0
    """How long a replica has little to do before it goes."""
    cpus: float = 1.0
    """Of each replica; it computes with as many threads."""
    gpus: float = 0.0
    """Of each replica. Fractions put several models on one GPU: .25 of 80 GB holds an 8B model."""

    def __post_init__(self) -> None:
        fits = 0 <= self.min_replicas <= self.max_replicas and self.max_replicas >= 1
        allowed = "0 <= min_replicas <= max_replicas, max_replicas >= 1"
        require(fits, "scaling.min_replicas", (self.min_replicas, self.max_replicas), allowed)
        for name in ("target_requests", "idle_seconds"):
            require(getattr(self, name) > 0, f"scaling.{name}", getattr(self, name), "positive")
        for name in ("cpus", "gpus"):
            require(getattr(self, name) >= 0, f"scaling.{name}", getattr(self, name), ">= 0")


@dataclass(frozen=True, slots=True)
class Remote:
    """An endpoint of another server."""

    url: str
    dialect: str
    model: str
    """Its name there; empty where the server has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModelConfig:
    """One reward model behind a name."""

    __pydantic_config__ = STRICT

    name: str
    """What clients call it; also its path, `/models/NAME/...`."""
    where: str
    """A model's folder, hub name or `models:/NAME@ALIAS` of MLflow; `function:MODULE:NAME` or
    `function:FILE.py:NAME`, a Python callable; another reward server's endpoint as
    `DIALECT+URL#MODEL`: `vllm+http://HOST:8000#skywork`; or `replay:FILE`, recorded scores."""
    rendered_by: str = ""
    """Template family that writes rendered text (OpenRLHF's queries, vLLM's `input`) where it is
    not the model's own: its turns are read and rendered again."""
    trust_remote_code: bool = False
    """Run the Python code that a model on the hub brings."""
    remote_template: str = ""
    """Of a remote arm whose protocol carries text alone: template family that writes it."""
    remote_key_variable: str = ""
    """Of a remote arm: environment variable of the node that holds the key it asks for."""
    scaling: ScalingConfig = ScalingConfig()
    batch: BatchConfig = BatchConfig()

    def __post_init__(self) -> None:
        allowed = "letters, digits, '.', '_' and '-', at most 64"
        require(NAME.fullmatch(self.name) is not None, "name", self.name, allowed)
        require(bool(self.where), "where", self.where, "a folder, hub name, function or URL")

    @property
    def kind(self) -> Kind:
        """What it is, by `where`."""
        if self.where.startswith(FUNCTION):
            return "function"
        if self.where.startswith(REPLAY):
            return "replay"
        is_url = "://" in self.where and not self.where.startswith("models:/")
        return "remote" if is_url else "model"

    @property
    def function(self) -> str:
        """Where the function is: `MODULE:NAME` or `FILE.py:NAME`."""
        return self.where.removeprefix(FUNCTION)

    @property
    def recorded(self) -> str:
        """Table of a replayed arm's scores."""
        return self.where.removeprefix(REPLAY)

    @property
    def remote(self) -> Remote:
        """The endpoint of another server; our own dialect where none is named."""
        address, _, model = self.where.partition("#")
        scheme, _, rest = address.partition("://")
        dialect, plus, inner = scheme.partition("+")
        return Remote(f"{inner if plus else scheme}://{rest}", dialect if plus else OWN, model)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The HTTP server before all models."""

    __pydantic_config__ = STRICT

    default: str = ""
    """Model that answers where a client names none; empty: the first one."""
    timeout: float = 120.0
    """Seconds within which a request is answered, unless it names fewer itself."""
    max_bytes: int = 16 * 2**20
    """Of a body."""
    max_responses: int = 4096
    """Texts in one request."""
    replicas: int = 1
    """Gateways. One forwards some hundred requests a second."""

    def __post_init__(self) -> None:
        for name in ("timeout", "max_bytes", "max_responses", "replicas"):
            require(getattr(self, name) > 0, f"gateway.{name}", getattr(self, name), "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayArgs(GatewayConfig):
    """What the gateway's application is made from: its settings, and the models behind it."""

    name: str = DEFAULT_SERVER
    """Of the server; the applications of its models are called NAME-model-MODEL."""
    run: str = ""
    """Id of this start of the server, told at `/health`; empty where it is deployed from a file."""
    models: tuple[str, ...]
    """Their names."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the models that ask for an API key: the environment variable that holds it. Nothing else
    protects a model."""

    def __post_init__(self) -> None:
        # Not `super()`: a dataclass with slots is another class than the one it was written as.
        GatewayConfig.__post_init__(self)
        check_server(self.name)
        require(bool(self.models), "models", self.models, "one name or more")
        distinct = len(set(self.models)) == len(self.models)
        require(distinct, "models", self.models, "different names")
        check_names(self.models, self.default, self.keys)


def check_server(name: str) -> None:
    """Checks the name of a server.

    Raises:
        ValueError: its characters, or too many of them.
    """
    allowed = "letters, digits and '_', at most 64"
    require(SERVER.fullmatch(name) is not None, "name", name, allowed)


def check_names(names: Sequence[str], default: str, keys: Mapping[str, str]) -> None:
    """Checks that what is asked for some models is asked for models that there are.

    Raises:
        ValueError: the default or a key names no model, or a key has no variable.
    """
    known = not default or default in names
    require(known, "gateway.default", default, f"one of {list(names)}, or empty")
    unknown = sorted(set(keys) - set(names))
    require(not unknown, "keys", unknown, f"names among {list(names)}")
    for name, variable in keys.items():
        require(bool(variable), f"keys[{name!r}]", variable, "an environment variable's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """A set of reward models behind one gateway."""

    models: tuple[str, ...]
    """`NAME=WHERE` of each; WHERE is a folder, a hub name, `models:/NAME@ALIAS`,
    `function:MODULE:NAME` or `DIALECT+URL`. Without NAME= it is called as the last part of
    where it is."""
    host: str = "127.0.0.1"
    """Address that the server listens at; 0.0.0.0 opens it to the network."""
    port: int = 8000
    """0 takes any that is free."""
    name: str = DEFAULT_SERVER
    """Of the server. Another one beside it on the same cluster takes another name, and answers
    below `/servers/NAME/` at the same port."""
    scaling: ScalingConfig = ScalingConfig()
    """Of every model; differing ones are named in the file that `--write` leaves."""
    batch: BatchConfig = BatchConfig()
    gateway: GatewayConfig = GatewayConfig()
    keys: tuple[str, ...] = ()
    """`NAME=VARIABLE`: the API key of a model, by the environment variable that holds it."""
    rendered_by: str = ""
    """Template family that writes rendered text, where it is not the models' own."""
    trust_remote_code: tuple[str, ...] = ()
    """Names of models whose own Python code may run."""
    write: str = ""
    """Write the file for `serve deploy` here, and serve nothing."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "one NAME=WHERE or more")
        require(0 <= self.port < 65536, "port", self.port, "a port, 0 to 65535")
        check_server(self.name)

    @property
    def route(self) -> str:
        """Path below which the server answers."""
        return "/" if self.name == DEFAULT_SERVER else f"/servers/{self.name}"

    def arms(self) -> tuple[ServedModelConfig, ...]:
        """Returns the models with their settings.

        Raises:
            ValueError: two models have one name, or a setting names a model that is not there.
        """
        named = list(map(_named, self.models))
        names = [name for name, _ in named]
        require(len(set(names)) == len(names), "models", names, "models of different names")
        check_names(names, self.gateway.default, self.key_variables())
        unknown = sorted(set(self.trust_remote_code) - set(names))
        require(not unknown, "trust_remote_code", unknown, f"names among {names}")
        return tuple(
            ServedModelConfig(
                name=name,
                where=where,
                rendered_by=self.rendered_by,
                trust_remote_code=name in self.trust_remote_code,
                scaling=self.scaling,
                batch=self.batch,
            )
            for name, where in named
        )

    def key_variables(self) -> dict[str, str]:
        """Returns the variable that holds a model's key, by the model's name.

        Raises:
            ValueError: a pair has no `=`, or a model has two.
        """
        pairs = [pair.partition("=") for pair in self.keys]
        for pair, (_, equals, _) in zip(self.keys, pairs, strict=True):
            require(bool(equals), "keys", pair, "NAME=VARIABLE")
        found = {name: variable for name, _, variable in pairs}
        require(len(found) == len(pairs), "keys", self.keys, "one of each model")
        return found


def _named(model: str) -> tuple[str, str]:
    """Returns name and place of `NAME=WHERE`, or of a place that names itself."""
    name, equals, where = model.partition("=")
    if equals and NAME.fullmatch(name):
        return name, where
    parts = [part for part in re.split(r"[/:@]", model) if part]
    own = next((part for part in reversed(parts) if part not in ("model", "latest")), "")
    return own, model
