"""Protocol-neutral request and response types.

A score is always raw here: an activation is how some dialects write a number, and is applied when
an answer is rendered. A score that failed or is not finite is an error of its response, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, TypeAlias

from pydantic import JsonValue

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Message: TypeAlias = Mapping[str, str]
"""A turn: its `role` and its `content`, and the speaker's `name` where it has one."""
Payload: TypeAlias = "Mapping[str, Payload] | Sequence[Payload] | str | float | bool | None"
"""A value that becomes JSON."""
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""Scores are float32 from the head on, and clients hold them as such."""
LONGEST_MESSAGE = 2000
"""Characters of a refusal: what a client sent is named by its beginning, and not sent back."""
Detail: TypeAlias = Literal[
    "objectives", "gate", "drivers", "provenance", "verdicts", "usage", "spread", "steps"
]


class RequestError(ValueError):
    """Refusal of a request: the fault and what to do about it, with an HTTP status."""

    def __init__(self, message: str, status: int = 400, retry_after: float | None = None) -> None:
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}... ({len(message)} characters)"
        super().__init__(message, status, retry_after)  # so that it survives pickling
        self.message, self.status, self.retry_after = message, status, retry_after
        """Seconds for the header Retry-After; None: it is not sent."""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt in turns, rendered by the reward model's own template, and responses to it."""

    prompt: tuple[Message, ...]
    """Empty where the client sent none: a function may score a response by itself, a model may
    not."""
    responses: tuple[str, ...]
    """May be empty, and is then answered with no score."""
    label: JsonValue = None
    """Right answer, as far as the client knows it; only functions read it."""


@dataclass(frozen=True, slots=True)
class RenderedText:
    """Text that went through a template already: prompt + response is scored as it stands.

    The prompt is empty where a client sends the whole conversation as one text. BOS is put in
    front once, by the artefact's rule, whether or not the text brings it.
    """

    prompt: str
    responses: tuple[str, ...]
    label: JsonValue = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whole conversations as token ids of the reward model's own tokenizer."""

    responses: tuple[tuple[int, ...], ...]


Item: TypeAlias = Chat | RenderedText | Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Items to score. They and their responses are answered in this order."""

    items: tuple[Item, ...]
    models: tuple[str, ...] = ()
    """Names; empty where the client sent none, and the path or the server's default decides."""
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weights by objective, in place of the gate's; one that is not named weighs 0. Empty: the gate
    decides."""
    details: frozenset[Detail] = frozenset()
    """Details wanted beside the score."""
    timeout: float | None = None
    """Seconds from arrival after which the client no longer waits."""
    compares: bool = False
    """Each item has two responses, and is answered with one `Score`: the probability that the first
    is better."""
    num_unread: int = 0
    """Number of responses that are in no item, since their prompt cannot be read: each is answered
    with the reason."""
    caller: str = ""
    """Name of the key that was sent."""

    @property
    def num_responses(self) -> int:
        """Number of responses that each model reads."""
        return sum(len(item.responses) for item in self.items)


@dataclass(frozen=True, slots=True)
class Driver:
    """Share of one objective in one score."""

    objective: str
    value: float
    """Predicted rating in the source's own scale."""
    contribution: float
    """Difference that it makes to the score of an average response."""


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """Answer of a judge about one response to a prompt, or about several that it was shown."""

    text: str
    """Words of the judge."""
    values: Mapping[str, float]
    """Numbers read in them, finite: `score`, or those of criteria; `better`, the probability that
    the first response shown is the better one; or the rank of each response, A the first shown."""
    shown: tuple[int, ...]
    """Places of the responses among those of the prompt, in the order in which they were shown."""


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """Decision of a bandit on a prompt."""

    arm: str
    """Name of the scorer that it chose."""
    propensity: float
    """Probability with which this arm was drawn."""
    decision: str
    """Id under which the bandit takes what comes of it (`/v1/feedback`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Details of a score; empty where they were not asked for or the model has none.

    Numbers are finite: a detail without a value is left out.
    """

    objectives: Mapping[str, float] = field(default_factory=dict[str, float])
    gate: Mapping[str, float] = field(default_factory=dict[str, float])
    drivers: tuple[Driver, ...] = ()
    verdicts: tuple[JudgeVerdict, ...] = ()
    """Answers of a judge from which the score comes."""
    usage: Mapping[str, float] = field(default_factory=dict[str, float])
    """Share of the score in what a judge cost: `calls`, `cached` answers, `input_tokens`,
    `output_tokens` and `cost`."""
    spread: float | None = None
    """Deviation between the members of an ensemble, in units of their deviations on training
    responses; None of what is no ensemble."""
    orders: tuple[float, ...] = ()
    """Of a pair that a judge compared, the probability that the first response is better: where the
    judge is shown it first, and where it is shown it second."""
    choice: ArmChoice | None = None
    """Arm that scored, where a bandit chose it."""
    steps: tuple[float | None, ...] = ()
    """Scores of a response's steps by a process reward model, in their order; None of a step that
    has none, since limits cut it."""

    def __post_init__(self) -> None:
        numbers = [*self.objectives.values(), *self.gate.values(), *self.usage.values()]
        numbers += self.orders
        numbers += [] if self.spread is None else [self.spread]
        numbers += [step for step in self.steps if step is not None]
        for driver in self.drivers:
            numbers += [driver.value, driver.contribution]
        for verdict in self.verdicts:
            numbers += verdict.values.values()
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"details must be finite, got {self}; see `scored`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score of one response (compared: of a pair): a number, or the reason why there is none."""

    score: float | None = None
    error: str = ""
    transient: bool = False
    """Whether the same request may succeed later (a lost replica). No: its text is at fault."""
    details: Details = Details()
    num_tokens: int = 0
    """Tokens of the rendered conversation."""
    num_cut: int = 0
    """Tokens of the conversation that the model's limits cut away before it was scored."""

    def __post_init__(self) -> None:
        if (self.score is None) == (not self.error):
            raise ValueError(f"a score or an error, got {self.score!r} and {self.error!r}")
        if self.score is not None and not abs(self.score) <= FLOAT32_MAX:
            raise ValueError(f"`score` must be finite, got {self.score!r}; see `scored`")


def scored(
    value: float,
    *,
    objectives: Mapping[str, float] | None = None,
    gate: Mapping[str, float] | None = None,
    drivers: Iterable[Driver] = (),
    spread: float | None = None,
    steps: Iterable[float | None] = (),
    num_tokens: int = 0,
    num_cut: int = 0,
) -> Score:
    """Returns a model's number as a score: an error where it is not finite.

    Details that are not finite are left out.
    """
    if not abs(value) <= FLOAT32_MAX:  # NaN compares as false
        return Score(error=f"the model's score is not finite: {value}", num_tokens=num_tokens)
    details = Details(
        objectives=_finite(objectives or {}),
        gate=_finite(gate or {}),
        drivers=tuple(d for d in drivers if math.isfinite(d.value + d.contribution)),
        spread=spread if spread is not None and math.isfinite(spread) else None,
        steps=tuple(steps),
    )
    return Score(score=value, details=details, num_tokens=num_tokens, num_cut=num_cut)


def _finite(named: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in named.items() if math.isfinite(value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The scores of one model."""

    model: str
    items: tuple[tuple[Score, ...], ...]
    """Scores by item and response, in the order of the request."""
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])
    """Hashes of weights and template, as the artefact has them; empty where nobody asked."""
    fingerprint: str = ""
    """Hash of what the replica that scored says of itself, so that what is known of a model can be
    told from what is no longer so."""
    version: int = 0
    """Number of the deployed version that scored; 0 where nothing tells."""

    @property
    def num_scores(self) -> list[int]:
        """Number of scores of each item."""
        return list(map(len, self.items))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreAnswer:
    """The scores of all models of a request, in its order."""

    models: tuple[ModelAnswer, ...]
    id: str
    """Id of the answer, unique on its server."""
    created: int
    """Unix time in seconds."""


def single_model_scores(
    answer: ScoreAnswer, request: ScoreRequest
) -> tuple[ModelAnswer, list[Score]]:
    """Returns the one model of an answer and its scores in the order of the request, all present.

    For dialects that know neither several models nor an error of a single response: one that
    failed fails the request, since null breaks these clients and any number would be a lie.

    Raises:
        RequestError: 422 if scores failed for good, 503 if trying again may help, and 500 if the
            answer does not fit the request.
    """
    expected = [[len(item.responses) for item in request.items]]
    received = [model.num_scores for model in answer.models]
    if received != expected:
        what = f"scores by model and item are {received}, expected {expected}"
        raise RequestError(f"internal error: {what}", 500)
    model = answer.models[0]
    scores = list(chain.from_iterable(model.items))
    failed = {i: score for i, score in enumerate(scores) if score.error}
    if failed:
        may_pass = any(score.transient for score in failed.values())
        reasons = abbreviate(f"{i}: {score.error}" for i, score in failed.items())
        raise RequestError(
            f"{len(failed)} of {len(scores)} scores failed, and this protocol has no error of a "
            f"single score: {reasons}. `/v1/rewards` answers with those that did not",
            503 if may_pass else 422,
        )
    return model, scores


def abbreviate(reasons: Iterable[str]) -> str:
    """Returns the first five reasons in one line, and how many more there are."""
    listed = list(reasons)
    if len(listed) > 5:
        listed[5:] = [f"and {len(listed) - 5} more"]
    return "; ".join(listed)


def best_first(scores: Sequence[Score]) -> list[int]:
    """Returns the places of scores from high to low, by the raw score: a sigmoid saturates."""
    return sorted(range(len(scores)), key=lambda i: -require_score(scores[i]))


def num_truncated(answer: ScoreAnswer) -> int:
    """Returns the number of texts that the limits of some model cut."""
    cut: set[tuple[int, int]] = set()
    for model in answer.models:
        for i, item in enumerate(model.items):
            cut |= {(i, j) for j, score in enumerate(item) if score.num_cut}
    return len(cut)


def beside_score(score: Score) -> dict[str, Payload]:
    """Returns the keys beside a score: that its text was cut, and the id of a bandit's decision."""
    keys: dict[str, Payload] = {"truncated": True} if score.num_cut else {}
    choice = score.details.choice
    return keys | {"decision": choice.decision} if choice else keys


def beside_scores(scores: Sequence[Score]) -> dict[str, Payload]:
    """Returns the same as lists over all texts, for answers without a place beside each score."""
    marks = [score.num_cut > 0 for score in scores]
    keys: dict[str, Payload] = {"truncated": marks} if any(marks) else {}
    choices = [score.details.choice for score in scores]
    if any(choices):
        keys["decisions"] = [choice.decision if choice else None for choice in choices]
    return keys


def decision_ids(model: ModelAnswer) -> list[str | None]:
    """Returns the id of a bandit's decision on each item; None where there is none."""
    ids: list[str | None] = []
    for item in model.items:
        choices = [score.details.choice for score in item if score.details.choice]
        ids.append(choices[0].decision if choices else None)
    return ids


def check_limit(key: str, most: int | None, scores: Sequence[Score]) -> None:
    """Checks that a client's own limit on tokens cuts no text: only the model's limits are applied.

    Args:
        key: name of the limit, for the message.
        most: maximum tokens of a text; None, or below 0: no limit.
        scores: scores of all texts.

    Raises:
        RequestError: 400, a text has more tokens.
    """
    if most is None or most < 0:
        return
    over = [i for i, score in enumerate(scores) if score.num_tokens > most]
    if over:
        raise RequestError(
            f"`{key}`: {most} may cut text {over[0]}, which was scored with "
            f"{scores[over[0]].num_tokens} tokens; texts are cut by the model's own limits alone. "
            "Leave the key out, or shorten the texts before they are sent"
        )


def require_score(score: Score) -> float:
    """Returns the number of a score that did not fail."""
    assert score.score is not None, score.error
    return score.score


def sigmoid(score: float) -> float:
    """Returns 1 / (1 + exp(-score)), which servers of classifiers apply to a single label."""
    # exp of a positive number may overflow: sigma(s) = exp(s) / (1 + exp(s)).
    small = math.exp(-abs(score))
    return 1 / (1 + small) if score >= 0 else small / (1 + small)
