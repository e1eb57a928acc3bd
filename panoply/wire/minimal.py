"""The smallest dialect: rendered conversations in, raw scores out, at `/minimal`.

{"texts": ["rendered conversation", ...]} -> {"scores": [0.3]}
"""

from __future__ import annotations

from panoply.wire.dialect import DialectPayload
from panoply.wire.messages import Texts, items_of
from panoply.wire.request import (
    Payload,
    RequestError,
    ScoreAnswer,
    ScoreRequest,
    require_score,
    single_model_scores,
)


class MinimalPayload(DialectPayload):
    """Rendered conversations."""

    texts: Texts

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        return ScoreRequest(items=items_of(self.texts))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the scores in the order sent."""
        _, scores = single_model_scores(answer, request)
        return {"scores": [require_score(score) for score in scores]}


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as FastAPI's servers have it."""
    return error.status, {"detail": error.message}
