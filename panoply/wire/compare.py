"""Comparisons, `/v1/compare`: the probability that one response is better than another.

    {"model": "pm", "timeout": 30,
     "pairs": [{"prompt": [{"role": "user", "content": "..."}], "a": "...", "b": "..."}]}

    {"id": "...", "created": 1700000000, "model": "pm", "results": [
        {"probability": 0.73}, {"probability": null, "error": "...", "transient": false}]}

One result for each pair, in the order sent: P(a > b). `truncated` and `num_cut` stand beside one of
which the model's limits cut a text. A model with scores says by its temperature T

    P(a > b) = sigma( (s_a - s_b) / T )

and a pairwise model the mean over both orders. Functions and other servers have no temperature, so
they are refused. A prompt that cannot be read costs its own pair the result. Unknown keys are
refused too.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from panoply.wire.dialect import DialectPayload, explain
from panoply.wire.messages import Prompt, WithPrompt, check_readable, messages
from panoply.wire.request import (
    Chat,
    ModelAnswer,
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    cut_mark,
)


class Pair(WithPrompt):
    """A prompt and two responses to it."""

    prompt: Prompt
    a: str
    b: str


class Compare(DialectPayload):
    """A call of `/v1/compare`."""

    pairs: Annotated[list[Pair], Field(fail_fast=True)]
    model: str = ""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds."""

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        check_readable(self.pairs)
        return self

    def request(self) -> ScoreRequest:
        """Returns what is asked."""
        readable = [pair for pair in self.pairs if not pair.reason]
        return ScoreRequest(
            items=tuple(Chat(messages(pair.prompt), (pair.a, pair.b)) for pair in readable),
            models=(self.model,) if self.model else (),
            timeout=self.timeout,
            compares=True,
        )

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the probability of each pair, or its error."""
        given = [[len(item) for item in model.items] for model in answer.models]
        if given != [[1] * len(request.items)]:
            told = f"internal error: {len(request.items)} pairs were asked for, got {given}"
            raise RequestError(told, 500)
        (model,) = answer.models
        scores = iter(model.items)
        results = [
            _result(Score(error=pair.reason) if pair.reason else next(scores)[0])
            for pair in self.pairs
        ]
        told = {"id": answer.id, "created": answer.created, "model": model.model}
        return {**told, "results": results}


def _result(score: Score) -> Payload:
    if score.error:
        return {"probability": None, "error": score.error, "transient": score.transient}
    cut = {"num_cut": score.num_cut} if score.num_cut else {}
    return {"probability": score.score, **cut_mark(score), **cut}


def payload_of(request: ScoreRequest) -> dict[str, Payload]:
    """Returns a request as the payload of a call, the inverse of `Compare.request`.

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
    named = {"model": request.models[0]} if request.models else {}
    late = {} if request.timeout is None else {"timeout": request.timeout}
    return {"pairs": pairs, **named, **late}


class _Result(BaseModel):
    probability: Annotated[float, Field(ge=0, le=1)] | None
    error: str = ""
    transient: bool = False
    num_cut: int = 0

    def read(self) -> Score:
        return Score(
            score=self.probability,
            error=self.error,
            transient=self.transient,
            num_cut=self.num_cut,
        )


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    results: list[_Result]


def read_answer(payload: Payload, request: ScoreRequest) -> ScoreAnswer:
    """Returns an answer's payload as an answer, the inverse of `Compare.render`.

    Raises:
        ValueError: it is no answer of `/v1/compare`, or not one to this request.
    """
    try:
        found = _Answer.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"no answer of `/v1/compare`: {explain(error)}") from error
    if len(found.results) != len(request.items):
        asked = len(request.items)
        raise ValueError(f"{found.model!r} answered {len(found.results)} of {asked} pairs")
    model = ModelAnswer(model=found.model, items=tuple((r.read(),) for r in found.results))
    return ScoreAnswer(models=(model,), id=found.id, created=found.created)
