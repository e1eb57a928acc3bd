"""The grammar of WHERE, which names a scorer in every command and file.

| WHERE | scorer |
| --- | --- |
| a folder, `owner/name`, `models:/NAME@ALIAS` | a reward model: ours, or of a published layout |
| `FOLDER?steps=RULE`, `replay:FILE?steps=RULE` | the same with scores of steps, put together |
| `function:MODULE:NAME`, `function:FILE.py:NAME` | a Python function |
| `DIALECT+URL#MODEL`, `DIALECT+URL?key_variable=NAME#MODEL` | an endpoint of another server |
| `replay:FILE` | recorded scores |
| `judge:FILE.yaml` | a judge: a language model that is asked for verdicts |
| `combine:FILE.yaml` | several scorers in one, by a rule |
| `bandit:FILE.yaml` | several scorers, of which a bandit chooses one for each prompt |

A new kind of scorer is its own module, and here a class, its prefix and its case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias, assert_never, runtime_checkable

import httpx2
from pydantic import JsonValue

from panoply.config.serve import ServedModelConfig
from panoply.config.steps import StepRule, split_off_rule
from panoply.scorers.endpoint import EndpointScorer
from panoply.scorers.function import load_function
from panoply.scorers.recorded import RecordedScorer
from panoply.secret import Address, without_secrets
from panoply.wire.breaker import CircuitState
from panoply.wire.chat_templates import TEMPLATES
from panoply.wire.request import Item, Score


class Scorer(Protocol):
    """Scores items without a reward model of this process."""

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        ...


@runtime_checkable
class BehindCircuit(Protocol):
    """Scorer that is left alone for a while after it failed."""

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to what scores."""
        ...


@runtime_checkable
class Counting(Protocol):
    """Scorer that counts what it does and costs."""

    def counts(self) -> Mapping[str, float]:
        """Returns numbers since the start, which only grow, by name."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """Scorer that may know of two responses which is the better one."""

    @property
    def compares(self) -> bool:
        """Says whether two responses may be compared by it."""
        ...

    async def compare(self, items: Sequence[Item]) -> Sequence[Score]:
        """Returns of each item of two responses the probability that the first is better."""
        ...


@runtime_checkable
class Described(Protocol):
    """Scorer that says what it is bounded by and what it costs."""

    def about(self) -> dict[str, JsonValue]:
        """Returns `limits` and `cost`, numbers by name, as far as it has them."""
        ...


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A reward model that this cluster loads."""

    kind: ClassVar[str] = "model"
    path: str
    """Folder, hub name, or `models:/` and its name in MLflow's registry."""
    steps: StepRule | None = None
    """Rule of the steps of a process reward model; None: its defaults, or it has no steps."""

    def at(self, path: str) -> str:
        """Returns the WHERE of the same model at another place."""
        return path + (self.steps.query if self.steps else "")


@dataclass(frozen=True, slots=True)
class PythonFunction:
    """A Python function."""

    kind: ClassVar[str] = "function"
    place: str
    """`MODULE:NAME` or `FILE.py:NAME`."""


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """An endpoint of another server."""

    kind: ClassVar[str] = "remote"
    url: str
    dialect: str
    model: str
    """Name of the model there; empty where the server has one."""
    key_variable: str = ""
    """Environment variable of the key that the server asks for; empty: it asks for none."""
    template: str = ""
    """Template family in which messages are written for a dialect that carries text alone."""


@dataclass(frozen=True, slots=True)
class RecordedScores:
    """A table of recorded scores."""

    kind: ClassVar[str] = "replay"
    file: str
    steps: StepRule | None = None
    """Rule that makes a score of the column `steps`; None: the column `score` is read."""


@dataclass(frozen=True, slots=True)
class JudgeFile:
    """A judge behind an OpenAI-compatible server."""

    kind: ClassVar[str] = "judge"
    file: str
    """Its settings, in YAML."""


@dataclass(frozen=True, slots=True)
class CombinedScorers:
    """Several scorers in one."""

    kind: ClassVar[str] = "composite"
    file: str
    """Its settings, in YAML."""


@dataclass(frozen=True, slots=True)
class BanditFile:
    """Several scorers, of which a bandit chooses one for each prompt."""

    kind: ClassVar[str] = "bandit"
    file: str
    """Its settings, in YAML."""


Where: TypeAlias = (
    LocalModel
    | PythonFunction
    | RemoteEndpoint
    | RecordedScores
    | JudgeFile
    | CombinedScorers
    | BanditFile
)
OpenModel: TypeAlias = Callable[[ServedModelConfig], Scorer]
"""Opens a reward model that is a part of a composite."""


def parse_where(where: str) -> Where:
    """Returns the scorer that a WHERE names; nothing is looked up.

    Raises:
        ValueError: an address holds a password or a key, or names an unknown template family, or
            the rule of steps is wrong.
    """
    if where.startswith("function:"):
        return PythonFunction(where.removeprefix("function:"))
    if where.startswith("replay:"):
        return RecordedScores(*split_off_rule(where.removeprefix("replay:")))
    if where.startswith("judge:"):
        return JudgeFile(where.removeprefix("judge:"))
    if where.startswith("combine:"):
        return CombinedScorers(where.removeprefix("combine:"))
    if where.startswith("bandit:"):
        return BanditFile(where.removeprefix("bandit:"))
    if "://" not in where or where.startswith("models:/"):
        return LocalModel(*split_off_rule(where))
    scheme, _, rest = where.partition("://")
    dialect, plus, inner = scheme.partition("+")
    address = Address.parse(f"{inner}://{rest}" if plus else where, "models")
    dialect = dialect if plus else "panoply"
    parsed = httpx2.URL(address.url)
    if "template" not in parsed.params:
        return RemoteEndpoint(address.url, dialect, address.model, address.key_variable)
    template = parsed.params["template"]
    if template not in TEMPLATES:
        raise ValueError(
            f"`template` of {without_secrets(where)!r} must be one of {list(TEMPLATES)}, got "
            f"{template!r}"
        )
    url = str(parsed.copy_remove_param("template"))
    return RemoteEndpoint(url, dialect, address.model, address.key_variable, template)


def key_variables(where: Where) -> list[str]:
    """Returns the environment variables that hold the keys of a scorer's servers.

    Raises:
        ValueError, OSError: the settings of a judge, composite or bandit cannot be read.
    """
    variables: list[str] = []
    match where:
        case RemoteEndpoint():
            variables.append(where.key_variable)
        case JudgeFile():
            from panoply.scorers.judge.settings import read_judge

            _, settings = read_judge(where.file)
            variables.append(settings.server.address.key_variable)
        case CombinedScorers() | BanditFile():
            for part in _parts(where).values():
                variables += key_variables(parse_where(part))
        case _:
            pass
    return [variable for variable in variables if variable]


def local_models(config: ServedModelConfig) -> list[ServedModelConfig]:
    """Returns the reward models that a scorer consists of, each once: itself, or parts of it.

    Raises:
        ValueError, OSError: the settings of a composite or a bandit cannot be read.
    """
    match where := parse_where(config.where):
        case LocalModel():
            return [config]
        case CombinedScorers() | BanditFile():
            models: dict[str, ServedModelConfig] = {}
            for name, part in _parts(where).items():
                of_part = replace(config, name=name, where=part)
                models |= {model.where: model for model in local_models(of_part)}
            return list(models.values())
        case _:
            return []


def _parts(where: CombinedScorers | BanditFile) -> dict[str, str]:
    """Returns the WHERE of each part of a composite, or of each arm of a bandit."""
    from panoply.scorers.bandit.opening import arm_places, read_bandit
    from panoply.scorers.composite.opening import part_places, read_composite

    file = Path(where.file).expanduser()
    if isinstance(where, BanditFile):
        return arm_places(file, read_bandit(file))
    return part_places(file, read_composite(file, is_fitted=False))


def open_scorer(
    config: ServedModelConfig, *, on_node: bool = True, open_model: OpenModel | None = None
) -> Scorer:
    """Returns what scores behind a name, where that is no model of this cluster.

    Args:
        config: the name and its settings.
        on_node: whether this is the node on which it runs, which holds the key of an endpoint.
        open_model: opens a reward model that is a part of a composite.

    Raises:
        ValueError, FileNotFoundError: there is no such function, table or file of settings, one of
            the settings is wrong, or the endpoint cannot be asked so.
    """
    match where := parse_where(config.where):
        case LocalModel():
            if open_model is None:
                why = "is a reward model, which a model's replica loads"
                raise ValueError(f"{config.name!r} {why}")
            return open_model(config)
        case PythonFunction():
            return load_function(where.place)
        case RecordedScores():
            return RecordedScorer(where.file, config.name, where.steps)
        case RemoteEndpoint():
            return EndpointScorer(
                where.url,
                where.dialect,
                model=where.model,
                template=where.template,
                api_key_env=where.key_variable if on_node else "",
            )
        case JudgeFile():
            # The client of OpenAI takes a second to load.
            from panoply.scorers.judge.scorer import JudgeScorer

            replicas = config.scaling.max_replicas
            return JudgeScorer(where.file, on_node=on_node, replicas=replicas)
        case CombinedScorers():
            from panoply.scorers.composite.opening import open_composite

            def open_part(name: str, part: str) -> Scorer:
                of_part = replace(config, name=name, where=part)
                return open_scorer(of_part, on_node=on_node, open_model=open_model)

            return open_composite(Path(where.file).expanduser(), open_part)
        case BanditFile():
            raise ValueError(
                f"{config.name!r} is a bandit, which writes each decision into its log and learns "
                "from what comes of it, and so runs in a server alone: serve it with jobs.serve "
                "and name it as http://HOST:PORT#NAME, or name one of its arms"
            )
        case _:
            assert_never(where)
