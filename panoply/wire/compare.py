"""Comparisons, `/v1/compare`: the probability that one response is better than another.

    {"model": "pm", "timeout": 30,
     "pairs": [{"prompt": [{"role": "user", "content": "..."}], "a": "...", "b": "..."}]}

    {"id": "...", "created": 1700000000, "model": "pm", "results": [
        {"probability": 0.73}, {"probability": null, "error": "...", "transient": false}]}

One result for each pair, in the order sent: P(a > b), with `truncated` and `num_cut` where the
model's limits cut a text. A model with scores answers by its temperature T

    P(a > b) = sigma( (s_a - s_b) / T )

and a pairwise model the mean over both orders. A judge that compares does so too, and tells what it
said in each order:

    {"probability": 0.5, "orders": [1.0, 0.0], "inconsistent": true}

`orders` is P(a > b) where a is shown first, and where b is; `inconsistent` says that the order
decided. With `"details": ["verdicts", "usage"]` its words and costs stand beside. What has neither
temperature nor both orders is refused: functions, other servers, judges that rate each response
alone. A prompt that cannot be read costs its own pair the result. Unknown keys are refused too.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, ValidationError, model_validator

from panoply.wire.dialect import DialectPayload, explain
from panoply.wire.messages import PromptTurns, WithPrompt, check_readable, messages
from panoply.wire.request import (
    Chat,
    ModelAnswer,
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    beside_score,
)
from panoply.wire.rewards import ScoreEntry, Timeout, error_entry

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1, strict=True)]


class ComparePair(WithPrompt):
    """Prompt and two responses to it."""

    prompt: PromptTurns
    a: str
    b: str


class ComparePayload(DialectPayload):
    """Payload of `/v1/compare`."""

    pairs: Annotated[list[ComparePair], Field(fail_fast=True)]
    model: str = ""
    details: list[Literal["verdicts", "usage"]] = Field(
        default_factory=list, max_length=64, fail_fast=True
    )
    timeout: Timeout | None = None

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        check_readable(self.pairs)
        return self

    def request(self) -> ScoreRequest:
        """Returns the neutral request, without the pairs whose prompt cannot be read."""
        readable = [pair for pair in self.pairs if not pair.reason]
        return ScoreRequest(
            items=tuple(Chat(messages(pair.prompt), (pair.a, pair.b)) for pair in readable),
            models=(self.model,) if self.model else (),
            details=frozenset(self.details),
            timeout=self.timeout,
            compares=True,
            num_unread=2 * (len(self.pairs) - len(readable)),
        )

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the probability of each pair, or its error."""
        received = [model.num_scores for model in answer.models]
        if received != [[1] * len(request.items)]:
            what = f"{len(request.items)} pairs were asked for, got {received}"
            raise RequestError(f"internal error: {what}", 500)
        (model,) = answer.models
        scores = iter(model.items)
        results: list[Payload] = []
        for pair in self.pairs:
            results.append(_entry(Score(error=pair.reason) if pair.reason else next(scores)[0]))
        return {
            "id": answer.id,
            "created": answer.created,
            "model": model.model,
            "results": results,
        }


def _entry(score: Score) -> Payload:
    if score.error:
        return error_entry("probability", score)
    details, orders = score.details, score.details.orders
    is_inconsistent = len(orders) == 2 and (orders[0] - 0.5) * (orders[1] - 0.5) < 0
    extras: dict[str, Payload] = {
        "num_cut": score.num_cut,
        "orders": orders,
        "inconsistent": is_inconsistent,
        "verdicts": [asdict(verdict) for verdict in details.verdicts],
        "usage": details.usage,
    }
    named = {name: value for name, value in extras.items() if value}
    return {"probability": score.score, **beside_score(score), **named}


def payload_of(request: ScoreRequest) -> dict[str, Payload]:
    """Returns a request as a payload, the inverse of `ComparePayload.request`.

    Raises:
        ValueError: an item is no prompt in turns with two responses, or several models are named.
    """
    if len(request.models) > 1:
        raise ValueError(f"`/v1/compare` asks one model, got {list(request.models)}")
    pairs: list[Payload] = []
    for item in request.items:
        if not isinstance(item, Chat) or len(item.responses) != 2:
            raise ValueError("`/v1/compare` takes prompts in turns with two responses each")
        a, b = item.responses
        pairs.append({"prompt": item.prompt, "a": a, "b": b})
    payload: dict[str, Payload] = {"pairs": pairs}
    if request.models:
        payload["model"] = request.models[0]
    if request.details:
        payload["details"] = sorted(request.details)
    if request.timeout is not None:
        payload["timeout"] = request.timeout
    return payload


class _Entry(ScoreEntry):
    score: Probability | None = Field(validation_alias="probability")
    orders: tuple[Probability, ...] = ()

    def read(self) -> Score:
        score = super().read()
        return replace(score, details=replace(score.details, orders=self.orders))


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    results: list[_Entry]


def read_answer(payload: Payload, request: ScoreRequest) -> ScoreAnswer:
    """Returns an answer's payload as an answer, the inverse of `ComparePayload.render`.

    Raises:
        ValueError: it is no answer of `/v1/compare`, or not one to this request.
    """
    try:
        answer = _Answer.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"no answer of `/v1/compare`: {explain(error)}") from error
    received, expected = len(answer.results), len(request.items)
    if received != expected:
        raise ValueError(f"{answer.model!r} answered {received} of {expected} pairs")
    items = tuple((entry.read(),) for entry in answer.results)
    model = ModelAnswer(model=answer.model, items=items)
    return ScoreAnswer(models=(model,), id=answer.id, created=answer.created)
