"""Our own endpoint, `/v1/rewards`: several models, all details, an error for each score.

    {"models": ["armorm"], "details": ["objectives", "gate"], "weights": {}, "timeout": 30,
     "items": [{"prompt": [{"role": "user", "content": "..."}], "responses": ["a", "b"]}]}

    {"id": "...", "created": 1700000000, "results": [{"model": "armorm", "items": [[
        {"score": 1.2, "objectives": {"helpfulness": 3.1}, "gate": {"helpfulness": 0.8}},
        {"score": null, "error": "...", "transient": false}]]}]}

Results stand in the order of `models`, items and responses in the order sent. Scores are raw;
`"activation": "sigmoid"` squashes them. `weights` take the gate's place; an objective that is not
named weighs 0. A prompt is messages, which the model's own template renders; text that went through
a template already is `rendered` instead. An item with neither is responses alone: functions score
it, models refuse it. A prompt that cannot be read (an image, a tool's call) costs its own item the
scores, and the request fails only where none can be read. A text that the model's limits cut has
`truncated` and `num_cut`, the tokens that were cut, beside its score. That of a bandit has `arm`,
`propensity` and `decision`, the id under which `/v1/feedback` takes what comes of it. Unknown keys
are refused, so that no typo passes in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from panoply.wire.dialect import DialectPayload, explain
from panoply.wire.messages import PromptTurns, Texts, WithPrompt, check_readable, messages
from panoply.wire.request import (
    ArmChoice,
    Chat,
    Detail,
    Details,
    Driver,
    Item,
    JudgeVerdict,
    ModelAnswer,
    Payload,
    RenderedText,
    Score,
    ScoreAnswer,
    ScoreRequest,
    Tokens,
    beside_score,
    sigmoid,
)

Timeout: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Seconds."""


class RewardItem(WithPrompt):
    """Prompt and the responses to it."""

    prompt: PromptTurns | None = None
    rendered: str | None = None
    responses: Texts
    label: JsonValue = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.rendered is not None:
            raise ValueError(
                "name `prompt` (messages) or `rendered` (text in a template), not both"
            )
        return self

    def item(self) -> Item:
        """Returns the neutral item."""
        if self.rendered is None:
            return Chat(messages(self.prompt or []), tuple(self.responses), self.label)
        return RenderedText(self.rendered, tuple(self.responses), self.label)


class RewardsPayload(DialectPayload):
    """Payload of `/v1/rewards`."""

    items: Annotated[list[RewardItem], Field(fail_fast=True)]
    models: list[str] = Field(default_factory=list, max_length=64, fail_fast=True)
    details: list[Detail] = Field(default_factory=list, max_length=64, fail_fast=True)
    weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    activation: Literal["none", "sigmoid"] = "none"
    timeout: Timeout | None = None

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        check_readable(self.items)
        return self

    @model_validator(mode="after")
    def _each_model_once(self) -> Self:
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"`models` names one twice: {self.models!r}")
        return self

    def request(self) -> ScoreRequest:
        """Returns the neutral request, without the items whose prompt cannot be read."""
        unread = [max(1, len(item.responses)) for item in self.items if item.reason]
        return ScoreRequest(
            items=tuple(item.item() for item in self.items if not item.reason),
            num_unread=sum(unread),
            models=tuple(self.models),
            weights=self.weights,
            details=frozenset(self.details),
            timeout=self.timeout,
        )

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns all scores, those that failed with their error."""
        results: list[Payload] = []
        for model in answer.models:
            scored_items = iter(model.items)
            items: list[list[Payload]] = []
            for item in self.items:
                if item.reason:
                    unread = Score(error=item.reason)
                    items.append([self._entry(unread)] * len(item.responses))
                else:
                    items.append([self._entry(score) for score in next(scored_items)])
            provenance = {"provenance": model.provenance} if model.provenance else {}
            results.append({"model": model.model, "items": items, **provenance})
        return {"id": answer.id, "created": answer.created, "results": results}

    def _entry(self, score: Score) -> Payload:
        if score.score is None:
            entry = error_entry("score", score)
        elif self.activation == "sigmoid":
            entry = {"score": sigmoid(score.score)}
        else:
            entry = {"score": score.score}
        extras: dict[str, Payload] = {
            "objectives": score.details.objectives,
            "gate": score.details.gate,
            "drivers": [asdict(driver) for driver in score.details.drivers],
            "verdicts": [asdict(verdict) for verdict in score.details.verdicts],
            "usage": score.details.usage,
            "steps": score.details.steps,
            "num_tokens": score.num_tokens,
            "num_cut": score.num_cut,
        }
        if score.details.spread is not None:  # 0 is a spread too
            entry["spread"] = score.details.spread
        entry |= beside_score(score) | {name: value for name, value in extras.items() if value}
        choice = score.details.choice
        return entry | {"arm": choice.arm, "propensity": choice.propensity} if choice else entry


def error_entry(key: str, score: Score) -> dict[str, Payload]:
    """Returns the entry of a score that failed: null at its key, with the reason."""
    return {key: None, "error": score.error, "transient": score.transient}


def payload_of(request: ScoreRequest) -> dict[str, Payload]:
    """Returns a request as a payload, the inverse of `RewardsPayload.request`.

    Raises:
        ValueError: an item is token ids, which this dialect does not carry.
    """
    settings: dict[str, Payload] = {
        "models": request.models,
        "details": sorted(request.details),
        "weights": request.weights,
        "timeout": request.timeout,
    }
    named = {name: value for name, value in settings.items() if value}
    return {"items": list(map(_item_payload, request.items)), **named}


def _item_payload(item: Item) -> dict[str, Payload]:
    if isinstance(item, Tokens):
        raise ValueError("`/v1/rewards` takes messages or text, no token ids")
    payload: dict[str, Payload] = {"responses": item.responses}
    if isinstance(item, RenderedText):
        payload["rendered"] = item.prompt
    elif item.prompt:
        payload["prompt"] = item.prompt
    if item.label is not None:
        payload["label"] = item.label
    return payload


Number: TypeAlias = Annotated[FiniteFloat, Field(strict=True)]
"""A number: neither a text that spells one nor true or false."""


class ScoreEntry(BaseModel):
    """Score or error in an answer of our own endpoints; unknown keys are not read."""

    score: Number | None
    error: str = ""
    transient: bool = False
    objectives: dict[str, Number] = {}
    gate: dict[str, Number] = {}
    drivers: tuple[Driver, ...] = ()
    verdicts: tuple[JudgeVerdict, ...] = ()
    usage: dict[str, FiniteFloat] = {}
    spread: FiniteFloat | None = None
    arm: str = ""
    propensity: Number = 0
    decision: str = ""
    steps: tuple[Number | None, ...] = ()
    num_tokens: int = 0
    num_cut: int = 0

    def read(self) -> Score:
        """Returns the neutral score."""
        choice = ArmChoice(self.arm, self.propensity, self.decision) if self.decision else None
        return Score(
            score=self.score,
            error=self.error,
            transient=self.transient,
            details=Details(
                objectives=self.objectives,
                gate=self.gate,
                drivers=self.drivers,
                verdicts=self.verdicts,
                usage=self.usage,
                spread=self.spread,
                choice=choice,
                steps=self.steps,
            ),
            num_tokens=self.num_tokens,
            num_cut=self.num_cut,
        )


class _Result(BaseModel):
    model: str
    items: list[list[ScoreEntry]]
    provenance: dict[str, str] = {}

    def read(self) -> ModelAnswer:
        items: list[tuple[Score, ...]] = []
        for item in self.items:
            items.append(tuple(entry.read() for entry in item))
        return ModelAnswer(model=self.model, items=tuple(items), provenance=self.provenance)


class _Answer(BaseModel):
    id: str
    created: int
    results: list[_Result]


def read_answer(payload: Payload, request: ScoreRequest) -> ScoreAnswer:
    """Returns an answer's payload as an answer, the inverse of `RewardsPayload.render`.

    Raises:
        ValueError: it is no answer of `/v1/rewards`, or not one to this request.
    """
    try:
        answer = _Answer.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"no answer of `/v1/rewards`: {explain(error)}") from error
    models = tuple(result.read() for result in answer.results)
    _check_fit(models, request)
    return ScoreAnswer(models=models, id=answer.id, created=answer.created)


def _check_fit(models: Sequence[ModelAnswer], request: ScoreRequest) -> None:
    """Checks that the models of a request answered, each with a score for every response.

    Raises:
        ValueError: another model answered, or another number of scores.
    """
    names = [model.model for model in models]
    expected_names = list(request.models) or names[:1]
    if not names or names != expected_names:
        raise ValueError(f"{names} answered, {expected_names or 'one model'} were asked for")
    expected = [len(item.responses) for item in request.items]
    for model in models:
        if model.num_scores != expected:
            what = f"answered {model.num_scores} scores, {expected} were asked for"
            raise ValueError(f"{model.model!r} {what}")
