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
`truncated` and `num_cut`, the tokens that were cut, beside its score. Unknown keys are refused: no
typo passes in silence.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from panoply.wire.dialect import DialectPayload, explain
from panoply.wire.messages import Prompt, Texts, WithPrompt, check_readable, messages
from panoply.wire.request import (
    Chat,
    Detail,
    Details,
    Driver,
    Item,
    ModelAnswer,
    Payload,
    RenderedText,
    Score,
    ScoreAnswer,
    ScoreRequest,
    Tokens,
    cut_mark,
    sigmoid,
)


class RewardItem(WithPrompt):
    """A prompt and responses to it."""

    prompt: Prompt | None = None
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
        """Returns it in our own words."""
        if self.rendered is None:
            return Chat(messages(self.prompt or []), tuple(self.responses), self.label)
        return RenderedText(self.rendered, tuple(self.responses), self.label)


class RewardsPayload(DialectPayload):
    """A call of `/v1/rewards`."""

    items: Annotated[list[RewardItem], Field(fail_fast=True)]
    models: list[str] = Field(default_factory=list)
    details: list[Detail] = Field(default_factory=list)
    weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    activation: Literal["none", "sigmoid"] = "none"
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds."""

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
        """Returns what is asked."""
        return ScoreRequest(
            items=tuple(item.item() for item in self.items if not item.reason),
            models=tuple(self.models),
            weights=self.weights,
            details=frozenset(self.details),
            timeout=self.timeout,
        )

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns all scores, those that failed with their error."""
        results: list[Payload] = []
        for model in answer.models:
            provenance = {"provenance": model.provenance} if model.provenance else {}
            scores = iter(model.items)
            by_item = [_unread(item) if item.reason else next(scores) for item in self.items]
            items = [[self._entry(score) for score in of_item] for of_item in by_item]
            results.append({"model": model.model, "items": items, **provenance})
        return {"id": answer.id, "created": answer.created, "results": results}

    def _entry(self, score: Score) -> Payload:
        entry: dict[str, Payload] = {
            "score": None,
            "error": score.error,
            "transient": score.transient,
        }
        if score.score is not None:
            squashed = self.activation == "sigmoid"
            entry = {"score": sigmoid(score.score) if squashed else score.score}
        details = score.details
        drivers = [
            {"objective": d.objective, "value": d.value, "contribution": d.contribution}
            for d in details.drivers
        ]
        found = {
            "objectives": details.objectives,
            "gate": details.gate,
            "drivers": drivers,
            "num_tokens": score.num_tokens,
            "num_cut": score.num_cut,
        }
        return entry | cut_mark(score) | {name: value for name, value in found.items() if value}


def _unread(item: RewardItem) -> tuple[Score, ...]:
    """Returns the errors of an item whose prompt cannot be read."""
    return (Score(error=item.reason),) * len(item.responses)


def payload_of(request: ScoreRequest) -> dict[str, Payload]:
    """Returns a request as the payload of a call, the inverse of `RewardsPayload.request`.

    Raises:
        ValueError: an item is token ids, which this dialect does not carry.
    """
    found: dict[str, Payload] = {
        "models": request.models,
        "details": sorted(request.details),
        "weights": request.weights,
        "timeout": request.timeout,
    }
    given = {name: value for name, value in found.items() if value}
    return {"items": list(map(_item_payload, request.items)), **given}


def _item_payload(item: Item) -> dict[str, Payload]:
    if isinstance(item, Tokens):
        raise ValueError("`/v1/rewards` takes messages or text, no token ids")
    label = {} if item.label is None else {"label": item.label}
    if isinstance(item, Chat):
        prompt = {"prompt": item.prompt} if item.prompt else {}
    else:
        prompt = {"rendered": item.prompt}
    return {**prompt, "responses": item.responses, **label}


class _Driver(BaseModel):
    objective: str
    value: FiniteFloat
    contribution: FiniteFloat


class _Score(BaseModel):
    score: FiniteFloat | None
    error: str = ""
    transient: bool = False
    objectives: dict[str, FiniteFloat] = {}
    gate: dict[str, FiniteFloat] = {}
    drivers: list[_Driver] = []
    num_tokens: int = 0
    num_cut: int = 0

    def read(self) -> Score:
        drivers = tuple(Driver(d.objective, d.value, d.contribution) for d in self.drivers)
        return Score(
            score=self.score,
            error=self.error,
            transient=self.transient,
            details=Details(objectives=self.objectives, gate=self.gate, drivers=drivers),
            num_tokens=self.num_tokens,
            num_cut=self.num_cut,
        )


class _Result(BaseModel):
    model: str
    items: list[list[_Score]]
    provenance: dict[str, str] = {}


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
        found = _Answer.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"no answer of `/v1/rewards`: {explain(error)}") from error
    models = tuple(
        ModelAnswer(
            model=result.model,
            items=tuple(tuple(score.read() for score in item) for item in result.items),
            provenance=result.provenance,
        )
        for result in found.results
    )
    named = [model.model for model in models]
    wanted = list(request.models) or named[:1]
    if not wanted or named != wanted:
        raise ValueError(f"{named} answered, {wanted or 'one model'} were asked for")
    asked = [len(item.responses) for item in request.items]
    for model in models:
        given = [len(item) for item in model.items]
        if given != asked:
            raise ValueError(f"{model.model!r} answered {given} scores, {asked} were asked for")
    return ScoreAnswer(models=models, id=found.id, created=found.created)
