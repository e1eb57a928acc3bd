"""LLaMA-Factory's reward server, `reward_model_type: api`, at `/v1/score/evaluation` or `/`.

    {"model": "model", "messages": ["rendered conversation", ...], "max_length": null}
    {"id": "scoreval-...", "object": "score.evaluation", "model": "armorm", "scores": [0.3]}

`messages` are texts that went through the policy's template, and scores are raw. Its trainer calls
every model "model", which therefore names none: the default answers, or the one of `/models/NAME`.
`max_length` is accepted where no text has more tokens; texts are cut by the model's own limits
alone, and where they were, `truncated` says of each whether it was.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from panoply.wire.dialect import DialectPayload
from panoply.wire.messages import Texts, items_of
from panoply.wire.request import (
    Payload,
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    beside_scores,
    check_limit,
    require_score,
    single_model_scores,
)

UNNAMED = "model"


class Evaluation(DialectPayload):
    """Rendered conversations."""

    model: str = UNNAMED
    messages: Texts
    max_length: Annotated[int, Field(ge=1)] | None = None

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        names = () if self.model == UNNAMED else (self.model,)
        return ScoreRequest(items=items_of(self.messages), models=names)

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the scores in the order sent."""
        model, scores = single_model_scores(answer, request)
        check_limit("max_length", self.max_length, scores)
        return {
            "id": f"scoreval-{answer.id}",
            "object": "score.evaluation",
            "model": model.model,
            "scores": [require_score(score) for score in scores],
            **beside_scores(scores),
        }


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as FastAPI's servers have it."""
    return error.status, {"detail": error.message}
