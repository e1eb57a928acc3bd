"""Configuration of a server: frozen dataclasses, whose values are checked when made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from panoply.config import require
from panoply.config.resume import PLACE
from panoply.config.steps import split_off_rule
from panoply.secret import Address, check_file_uri

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
SERVER = re.compile(r"[A-Za-z0-9]\w{0,63}", re.ASCII)
"""Names of servers: without a hyphen, which ends the name in those of the applications."""
KEY_PLACE = re.compile(r"[A-Za-z_]\w*|/.+", re.ASCII)
"""Places of API keys: variables and files, and no key itself."""
DEFAULT_SERVER = "panoply"
STRICT = {"extra": "forbid"}
"""Read by pydantic, where these are made from a file: a misspelled setting is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Dynamic batching in the queue before a model."""

    __pydantic_config__ = STRICT

    max_seconds: float = 0.5
    """Target seconds of a forward. Batches are sized to it by the speed of the last one, and are
    never cut between responses to one prompt."""
    max_tokens: int = 16_384
    """Maximum tokens of a batch, shared ones counted once. One prompt's responses are split beyond
    it."""
    max_wait: float = 0.02
    """Maximum seconds that the first response of an idle queue waits for more, as long as they keep
    coming; a long response may wait a quarter of its own forward. 0: none waits."""
    max_queued: int = 4096
    """Maximum responses that wait; beyond it requests get 429 with Retry-After."""
    max_queued_tokens: int = 4_000_000
    """Maximum tokens that wait, shared ones of a request counted once; beyond it requests get 429,
    and a single request that has more gets 413."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_queued", "max_queued_tokens"):
            require(getattr(self, name) >= 1, f"batch.{name}", getattr(self, name), ">= 1")
        require(self.max_seconds > 0, "batch.max_seconds", self.max_seconds, "positive")
        require(0 <= self.max_wait <= 10, "batch.max_wait", self.max_wait, "within [0, 10] seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """Replicas of a model, and the resources of each."""

    __pydantic_config__ = STRICT

    min_replicas: int = 1
    """Minimum replicas. 0 unloads an idle model; the next request then waits for it to load."""
    max_replicas: int = 1
    """Maximum replicas."""
    target_requests: float = 64.0
    """Target requests in progress per replica; more of them start another replica."""
    idle_seconds: float = 300.0
    """Seconds with little to do after which a replica stops."""
    cpus: float = 1.0
    """CPUs of each replica, which computes with as many threads."""
    gpus: float = 0.0
    """GPUs of each replica. Fractions share one GPU: .25 of 80 GB holds an 8B model."""

    def __post_init__(self) -> None:
        fits = 0 <= self.min_replicas <= self.max_replicas and self.max_replicas >= 1
        allowed = "0 <= min_replicas <= max_replicas, max_replicas >= 1"
        require(fits, "scaling.min_replicas", (self.min_replicas, self.max_replicas), allowed)
        for name in ("target_requests", "idle_seconds"):
            require(getattr(self, name) > 0, f"scaling.{name}", getattr(self, name), "positive")
        for name in ("cpus", "gpus"):
            require(getattr(self, name) >= 0, f"scaling.{name}", getattr(self, name), ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModelConfig:
    """One scorer behind a name: a reward model, a function, an endpoint or recorded scores."""

    __pydantic_config__ = STRICT

    name: str
    """Name that clients use, also in the path `/models/NAME/...`."""
    where: str
    """Scorer as WHERE names it (`panoply.scorers.where`): a model's folder, hub name or
    `models:/NAME@ALIAS`; `function:MODULE:NAME` or `function:FILE.py:NAME`; `DIALECT+URL#MODEL`,
    as `vllm+http://HOST:8000?key_variable=NAME#skywork`, where NAME is the environment variable of
    its API key, if it asks for one (and `template=chatml` the family of templates in which messages
    are written for OpenRLHF, SGLang and TEI); `replay:FILE`; `judge:FILE.yaml`;
    `combine:FILE.yaml`; or `bandit:FILE.yaml`."""
    rendered_by: str = ""
    """Template family of the rendered text that clients send (OpenRLHF's queries, vLLM's `input`)
    where it is not the model's own: its turns are parsed and rendered again."""
    trust_remote_code: bool = False
    """Run the Python code that a model on the hub brings."""
    scaling: ScalingConfig = ScalingConfig()
    batch: BatchConfig = BatchConfig()

    def __post_init__(self) -> None:
        allowed = "letters, digits, '.', '_' and '-', at most 64"
        require(NAME.fullmatch(self.name) is not None, "name", self.name, allowed)
        check_address(self.where)
        require(bool(self.where), "where", self.where, "a folder, hub name, function or URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBackboneConfig:
    """A loaded backbone, and the models whose adapters lie on it."""

    __pydantic_config__ = STRICT

    name: str
    """Name of its application."""
    key: str
    """Name of the backbone: a hash of its weights, or of the place that they come from."""
    models: Mapping[str, ServedModelConfig]
    """Models by member: a model's name, and behind an @ its version where that is not the first."""
    scaling: ScalingConfig = ScalingConfig()
    batch: BatchConfig = BatchConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """HTTP gateway before all models."""

    __pydantic_config__ = STRICT

    default: str = ""
    """Name of the model that answers where a client names none; empty: the first one."""
    timeout: float = 120.0
    """Maximum seconds until a request is answered; it may name fewer itself."""
    max_bytes: int = 16 * 2**20
    """Maximum bytes of a request's body."""
    max_responses: int = 4096
    """Maximum texts in one request."""
    replicas: int = 1
    """Gateway replicas. One forwards some hundred requests a second."""
    rate: float = 0.0
    """Characters a second that each key may ask, of all fields and for each model of a request, a
    prompt's once; all without a key share one budget, and bursts of ten seconds pass. 0: no
    limit."""
    hosts: tuple[str, ...] = ()
    """Names in the header Host that a server on loopback answers to, besides its addresses and
    localhost; a proxy on the same machine may send such a name."""

    def __post_init__(self) -> None:
        for name in ("timeout", "max_bytes", "max_responses", "replicas"):
            require(getattr(self, name) > 0, f"gateway.{name}", getattr(self, name), "positive")
        require(0 <= self.rate < math.inf, "gateway.rate", self.rate, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayArgs(GatewayConfig):
    """Arguments of the gateway's application: its settings, and the models behind it."""

    name: str = DEFAULT_SERVER
    """Name of the server; the applications of its models are called NAME-model-MODEL."""
    run: str = ""
    """Id of this start of the server, shown at `/health`; empty where a file deployed it."""
    models: tuple[str, ...]
    """Names of the models."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Places of the API keys, by the model that asks for one: environment variables, or absolute
    paths of files with a key on each line. Nothing else protects a model."""
    places: Mapping[str, str] = field(default_factory=dict[str, str])
    """Places of the models that share a backbone, APPLICATION/MEMBER, by the model."""

    def __post_init__(self) -> None:
        # Not `super()`: a dataclass with slots is another class than the one it was written as.
        GatewayConfig.__post_init__(self)
        check_server(self.name)
        require(bool(self.models), "models", self.models, "one name or more")
        distinct = len(set(self.models)) == len(self.models)
        require(distinct, "models", self.models, "different names")
        check_names(self.models, self.default, self.keys)


def check_address(where: str) -> None:
    """Checks that a WHERE that is an address holds no secret.

    Raises:
        ValueError: it does; the message does not repeat it.
    """
    if where.startswith("replay:"):
        check_file_uri(where, "models")
    elif "://" in where and not where.startswith(("function:", "models:/")):
        Address.parse(where, "models")


def check_server(name: str) -> None:
    """Checks the name of a server.

    Raises:
        ValueError: its characters, or too many of them.
    """
    allowed = "letters, digits and '_', at most 64"
    require(SERVER.fullmatch(name) is not None, "name", name, allowed)


def check_names(names: Sequence[str], default: str, keys: Mapping[str, Sequence[str]]) -> None:
    """Checks that settings for some models name models that there are.

    Raises:
        ValueError: the default or a key names no model, or a key has no place.
    """
    is_known = not default or default in names
    require(is_known, "gateway.default", default, f"one of {list(names)}, or empty")
    unknown = sorted(set(keys) - set(names))
    require(not unknown, "keys", unknown, f"names among {list(names)}")
    for name, places in keys.items():
        is_placed = bool(places) and all(map(KEY_PLACE.fullmatch, places))
        allowed = "names of environment variables, or absolute paths of files"
        require(is_placed, f"keys[{name!r}]", list(places), allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """A server: a set of reward models behind one gateway."""

    models: tuple[str, ...] = field(metadata=PLACE)
    """`NAME=WHERE` of each model; WHERE is a folder, a hub name, `models:/NAME@ALIAS`,
    `function:MODULE:NAME`, `DIALECT+URL#MODEL`, `replay:FILE`, `judge:FILE.yaml`,
    `combine:FILE.yaml` or `bandit:FILE.yaml`. Without NAME= the last part of WHERE is the name."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 opens the server to the network."""
    port: int = 8000
    """Port to listen at; 0 takes any that is free."""
    name: str = DEFAULT_SERVER
    """Name of the server. Another server on the same cluster takes another name, and answers below
    `/servers/NAME/` at the same port."""
    scaling: ScalingConfig = ScalingConfig()
    """Replicas of every model; edit the file that `--write` leaves for values by model."""
    batch: BatchConfig = BatchConfig()
    """Batching of every model."""
    gateway: GatewayConfig = GatewayConfig()
    """HTTP gateway before the models."""
    keys: tuple[str, ...] = ()
    """`NAME=VARIABLE` or `NAME=/FILE` of each model that asks for an API key: an environment
    variable that holds it, or a file with a key on each line, which is read again when it changes.
    A model may have several; their names stand in the metrics."""
    rendered_by: str = ""
    """Template family of the rendered text that clients send, where it is not the models' own."""
    trust_remote_code: tuple[str, ...] = ()
    """Names of the models whose own Python code may run."""
    share_backbone: bool = False
    """Load a backbone once for all models that are LoRA adapters on it: models that
    `jobs.preference --members adapters` trained on the same backbone, or adapters of peft with the
    same base model. The others load as they do without it."""
    write: str = ""
    """File to write for `serve deploy`; nothing is served then."""

    def __post_init__(self) -> None:
        require(bool(self.models), "models", self.models, "one NAME=WHERE or more")
        require(0 <= self.port < 65536, "port", self.port, "a port, 0 to 65535")
        check_server(self.name)

    @property
    def route(self) -> str:
        """Path below which the server answers."""
        return "/" if self.name == DEFAULT_SERVER else f"/servers/{self.name}"

    def served_models(self) -> tuple[ServedModelConfig, ...]:
        """Returns the models with their settings.

        Raises:
            ValueError: two models have one name, or a setting names a model that is not there.
        """
        named = [_name_and_where(model) for model in self.models]
        names = [name for name, _ in named]
        require(len(set(names)) == len(names), "models", names, "models of different names")
        check_names(names, self.gateway.default, self.key_places())
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

    def key_places(self) -> dict[str, tuple[str, ...]]:
        """Returns the places of a model's keys, by the model's name.

        Raises:
            ValueError: a pair has no `=`, or stands there twice.
        """
        places: dict[str, tuple[str, ...]] = {}
        for pair in self.keys:
            name, equals, place = pair.partition("=")
            require(bool(equals), "keys", pair, "NAME=VARIABLE or NAME=/FILE")
            before = places.get(name, ())
            require(place not in before, "keys", self.keys, "each place of a model once")
            places[name] = (*before, place)
        return places

    def key_variables(self) -> list[str]:
        """Returns the environment variables among the places of keys."""
        places = [place for pair in self.key_places().values() for place in pair]
        return [place for place in places if not place.startswith("/")]


def exposure(config: ServeConfig) -> str:
    """Returns a warning where a server is open to the network without a key; else nothing."""
    open_models = sorted(
        {model.name for model in config.served_models()} - set(config.key_places())
    )
    if config.host in ("127.0.0.1", "localhost", "::1") or not open_models:
        return ""
    return (
        f"WARNING: {config.host} opens this server to the network, and whoever reaches it may ask "
        f"{', '.join(open_models)} without a key: add `--keys NAME=VARIABLE` for each"
    )


def _name_and_where(model: str) -> tuple[str, str]:
    """Returns the parts of `NAME=WHERE`; of a bare WHERE, its last telling part is the name.

    Raises:
        ValueError: the WHERE is an address that holds a secret.
    """
    name, equals, where = model.partition("=")
    if equals and NAME.fullmatch(name):
        check_address(where)
        return name, where
    check_address(model)
    place, _ = split_off_rule(model)
    parts = [part for part in re.split(r"[/:@]", place) if part not in ("", "model", "latest")]
    return parts[-1] if parts else "", model
