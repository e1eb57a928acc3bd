"""Settings of a judge, the file `judge:FILE.yaml`: its server, what it is shown, how it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from panoply.config import require
from panoply.config.serve import STRICT
from panoply.secret import Address

CRITERION = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)
"""Names of criteria, which are keys of the judge's answer."""
RESERVED = ("reason", "score", "better", "ranking")
"""Keys of a judge's answer that no criterion may take."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of responses that are shown together, in the order in which they are shown."""
PREFERENCES: Mapping[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""Labels of a pairwise judge, where a file has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """OpenAI-compatible server of a judge, and its limits.

    Limits hold for one judge; its replicas share them evenly.
    """

    __pydantic_config__ = STRICT

    url: str
    """Base address and model, `http://HOST:8000/v1#MODEL`, or
    `https://HOST/v1?key_variable=NAME#MODEL`, where NAME is the environment variable of its key."""
    concurrency: int = 16
    """Maximum requests at the same time."""
    requests_per_second: float = 0.0
    """Maximum requests a second, with those that are sent again; 0: no limit."""
    tokens_per_second: float = 0.0
    """Maximum tokens a second, read and written together; 0: no limit."""
    timeout: float = 120.0
    """Maximum seconds of all verdicts of a request, with those that are asked for again."""
    input_price: float = 0.0
    """Price of a million tokens that the judge reads, in any currency; 0: costs are not told."""
    output_price: float = 0.0
    """Price of a million tokens that the judge writes."""
    max_cost: float = 0.0
    """Most that is spent until the scorer is started again, after which no verdict is asked for;
    0: no limit."""
    body: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Further keys of each request's body, such as `chat_template_kwargs` of vLLM."""

    def __post_init__(self) -> None:
        scheme, _, host = self.address.url.partition("://")
        is_web = scheme in ("http", "https") and bool(host.strip("/"))
        require(is_web, "server.url", self.address.url, "http://HOST/v1#MODEL or https://...")
        require(bool(self.address.model), "server.url", self.address.url, "followed by #MODEL")
        require(self.concurrency >= 1, "server.concurrency", self.concurrency, ">= 1")
        is_positive = 0 < self.timeout < math.inf
        require(is_positive, "server.timeout", self.timeout, "positive")
        names = ("requests_per_second", "tokens_per_second", "input_price", "output_price")
        for name in (*names, "max_cost"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"server.{name}", value, ">= 0")
        is_priced = bool(self.input_price or self.output_price)
        allowed = "0 where neither `input_price` nor `output_price` is set"
        require(is_priced or not self.max_cost, "server.max_cost", self.max_cost, allowed)
        taken = {"messages", "model", "seed", "stream", "n"} & set(self.body)
        require(not taken, "server.body", sorted(taken), "keys that Panoply does not send itself")

    @property
    def address(self) -> Address:
        """Address, model and key's variable."""
        return Address.parse(self.url, "server.url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Criterion of a rubric, which the judge rates on the judge's scale or labels."""

    __pydantic_config__ = STRICT

    name: str
    """Name, under which its value comes back among the objectives."""
    text: str
    """Question or description that the judge reads."""
    weight: float = 1.0
    """Weight in the score; a fault that takes from the score has a negative one."""

    def __post_init__(self) -> None:
        is_name = CRITERION.fullmatch(self.name) is not None and self.name not in RESERVED
        allowed = f"letters, digits and '_', and none of {list(RESERVED)}"
        require(is_name, "name", self.name, allowed)
        require(bool(self.text.strip()), "text", self.text, "the criterion in words")
        is_weight = math.isfinite(self.weight) and self.weight != 0
        require(is_weight, "weight", self.weight, "a number other than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Criteria by which a judge rates; the score is their weighted mean."""

    __pydantic_config__ = STRICT

    criteria: tuple[Criterion, ...]
    """Criteria, one at least."""
    separate: bool = False
    """Ask for each criterion in a request of its own, instead of for all at once."""

    def __post_init__(self) -> None:
        require(bool(self.criteria), "criteria", [], "one criterion or more")
        names = [criterion.name for criterion in self.criteria]
        require(len(set(names)) == len(names), "criteria", names, "criteria of different names")
        weights = [criterion.weight for criterion in self.criteria]
        allowed = "criteria of which one at least has a positive weight"
        require(max(weights) > 0, "criteria", weights, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """Judges each response alone: its score is the judge's number."""

    __pydantic_config__ = STRICT

    kind: Literal["pointwise"] = "pointwise"
    """Way of judging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """Judges two responses to a prompt against each other, each pair in both orders."""

    __pydantic_config__ = STRICT

    kind: Literal["pairwise"] = "pairwise"
    """Way of judging."""
    pairs: Literal["all", "circular"] = "all"
    """Pairs of a prompt's responses: all, or each response with the next one and the last with the
    first."""
    scores: Literal["win_share", "bradley_terry"] = "win_share"
    """Scores from verdicts: share of games won, or log strength by Bradley-Terry."""
    max_responses: int = 16
    """Most responses to a prompt; more have an error instead of scores."""

    def __post_init__(self) -> None:
        allowed = "within [2, 64]"
        require(2 <= self.max_responses <= 64, "mode.max_responses", self.max_responses, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listwise:
    """Ranks all responses to a prompt at once, in a random order and in the reverse of it."""

    __pydantic_config__ = STRICT

    kind: Literal["listwise"] = "listwise"
    """Way of judging."""
    scores: Literal["win_share", "bradley_terry"] = "win_share"
    """Scores from rankings: share of responses ranked below, or log strength by Bradley-Terry."""
    max_responses: int = 16
    """Most responses to a prompt; more have an error instead of scores."""

    def __post_init__(self) -> None:
        allowed = f"within [2, {len(LETTERS)}]"
        fits = 2 <= self.max_responses <= len(LETTERS)
        require(fits, "mode.max_responses", self.max_responses, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """Answers in JSON, as structured output where the server has it."""

    __pydantic_config__ = STRICT

    kind: Literal["json"] = "json"
    """Form of the answer."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """Value of `response_format`; auto: a JSON schema, until the server refuses it once."""
    reason: bool = True
    """Ask for a reason before the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternAnswer:
    """Answers in text, in which a regular expression names the verdict."""

    __pydantic_config__ = STRICT

    kind: Literal["pattern"] = "pattern"
    """Form of the answer."""
    pattern: str
    """Regular expression with one group, the verdict. Matches with different verdicts are none."""
    probabilities: bool = False
    """Take the mean over the probabilities of all labels where the verdict stands, instead of the
    label that was drawn. The server must return `logprobs`, and each label must be one token."""
    min_mass: float = 0.5
    """Smallest probability of all labels together; below it there is no verdict."""

    def __post_init__(self) -> None:
        try:
            num_groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(
                f"`answer.pattern` must be a regular expression, got {self.pattern!r}: {error}"
            ) from error
        require(num_groups == 1, "answer.pattern", self.pattern, "of one group, the verdict")
        require(0 < self.min_mass <= 1, "answer.min_mass", self.min_mass, "within (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling of a judge's answers."""

    __pydantic_config__ = STRICT

    votes: int = 1
    """Answers to each question, with a seed each; the score is their mean."""
    temperature: float = 0.0
    """Temperature of the judge's sampling."""
    seed: int = 0
    """Seed of the first vote; each further vote takes the next number."""
    max_tokens: int = 1024
    """Maximum tokens of an answer; one that is cut there is no verdict."""
    min_share: float = 1.0
    """Smallest share of a response's verdicts that must be there; below it, it has an error."""

    def __post_init__(self) -> None:
        require(1 <= self.votes <= 64, "sampling.votes", self.votes, "within [1, 64]")
        is_finite = 0 <= self.temperature < math.inf
        require(is_finite, "sampling.temperature", self.temperature, ">= 0")
        differs = self.votes == 1 or self.temperature > 0
        allowed = "positive where `votes` is above 1, else all votes are the same"
        require(differs, "sampling.temperature", self.temperature, allowed)
        require(self.max_tokens >= 1, "sampling.max_tokens", self.max_tokens, ">= 1")
        require(0 < self.min_share <= 1, "sampling.min_share", self.min_share, "within (0, 1]")


Mode: TypeAlias = Annotated[Pointwise | Pairwise | Listwise, Field(discriminator="kind")]
Answer: TypeAlias = Annotated[JsonAnswer | PatternAnswer, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Judge behind an OpenAI-compatible server."""

    __pydantic_config__ = STRICT

    server: ServerSettings
    """Server that is asked."""
    prompt: str = ""
    """Jinja template of the message to the judge; empty: Panoply's own for the mode and rubric.
    Names in it are `prompt`, `reference`, `criteria`, `labels`, `low`, `high`, `answer_format`, and
    `response` (pointwise), `first` and `second` (pairwise) or `responses` (listwise)."""
    system: str = ""
    """Message of the role `system`; empty: none is sent."""
    rubric: Rubric | None = None
    """Weighted criteria."""
    mode: Mode = Pointwise()
    """Way of judging."""
    answer: Answer = JsonAnswer()
    """Form of the answer."""
    scale: tuple[float, float] = (1.0, 10.0)
    """Lowest and highest number of a pointwise judge; a number outside is no verdict."""
    labels: Mapping[str, float] = field(default_factory=dict[str, float])
    """Values of the verdicts by what the judge writes, instead of numbers on the scale. Of a
    pairwise judge the value is the probability that the first response is better."""
    sampling: Sampling = Sampling()
    """Sampling of the answers."""
    fence: bool = True
    """Put each text that is judged between lines with a random mark, and say that it is data. False
    suits judges trained on a form without, and lets a response speak to the judge."""
    cache: bool = True
    """Keep answers below `PANOPLY_STORE`, and give the same ones to the same questions."""

    def __post_init__(self) -> None:
        has_content = bool(self.prompt.strip()) or self.rubric is not None
        require(has_content, "prompt", self.prompt, "a template where there is no `rubric`")
        low, high = self.scale
        is_scale = math.isfinite(low) and math.isfinite(high) and low < high
        require(is_scale, "scale", list(self.scale), "two numbers, the lower one first")
        are_finite = all(map(math.isfinite, self.labels.values()))
        require(are_finite, "labels", dict(self.labels), "finite numbers by label")
        differ = len(set(self.labels.values())) != 1
        require(differ, "labels", dict(self.labels), "two labels of different values or more")
        self._check_mode()
        self._check_answer()

    def _check_mode(self) -> None:
        if isinstance(self.mode, Pairwise):
            are_shares = all(0 <= value <= 1 for value in self.labels.values())
            require(are_shares, "labels", dict(self.labels), "probabilities of a pairwise judge")
        if isinstance(self.mode, Listwise):
            require(not self.labels, "labels", dict(self.labels), "empty of a listwise judge")
        if not isinstance(self.mode, Pointwise) and self.rubric is not None:
            allowed = f"false of a {self.mode.kind} judge, which names one verdict by all criteria"
            require(not self.rubric.separate, "rubric.separate", True, allowed)

    def _check_answer(self) -> None:
        if isinstance(self.answer, JsonAnswer):
            return
        at_once = self.rubric is not None and not self.rubric.separate
        if at_once and isinstance(self.mode, Pointwise):
            allowed = "'json' where a rubric is asked at once (`rubric.separate: true` else)"
            require(False, "answer.kind", self.answer.kind, allowed)
        if not self.answer.probabilities:
            return
        has_labels = bool(self.values)
        require(has_labels, "answer.probabilities", True, "false where there are no `labels`")
        for label in self.values:
            longer = [other for other in self.values if other != label and other.startswith(label)]
            allowed = f"labels of which none begins another one ({label!r} does)"
            require(not longer, "labels", dict(self.values), allowed)

    @property
    def values(self) -> Mapping[str, float]:
        """Values by label; empty where the judge names numbers or ranks."""
        if isinstance(self.mode, Pairwise):
            return self.labels or PREFERENCES
        return self.labels
