"""Text Embeddings Inference: `/predict` and `/rerank`.

    {"inputs": "text", "raw_scores": true}             [{"score": 1.2, "label": "LABEL_0"}]
    {"inputs": ["a", "b"]}                             the same: a pair, not a batch
    {"inputs": [["text"], ["a", "b"]]}                 [[{...}], [{...}]]
    {"query": "q", "texts": ["a", "b"]}                [{"index": 1, "score": 0.9}], best first

As there, scores go through a sigmoid unless `raw_scores` is true.

Where we differ:
1. A single text is a rendered conversation; of a pair the first is a user's turn and the second the
   response to it, as are `query` and a text.
2. `truncate` and `truncation_direction` are not read: the artefact's own limits hold.
3. Empty lists are answered with empty lists, where TEI refuses them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from panoply.wire.endpoint import Call
from panoply.wire.request import (
    Item,
    Payload,
    Rendered,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    sigmoid,
    sole,
    value_of,
)
from panoply.wire.turns import Texts
from panoply.wire.vllm import ask, best_first

OneOrTwo: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=2)]
"""A text, or a pair of texts."""


class Switched(Call):
    """What both payloads share: the switch of the activation."""

    raw_scores: bool = False

    def number(self, score: Score) -> float:
        """Returns a score as it is said: through the sigmoid unless raw ones are wanted."""
        return value_of(score) if self.raw_scores else sigmoid(value_of(score))


class Predict(Switched):
    """Texts or pairs of texts."""

    inputs: (
        str
        | Annotated[list[str], Field(max_length=2)]
        | Annotated[list[OneOrTwo], Field(fail_fast=True)]
    )

    def request(self) -> ScoreRequest:
        """Returns an item for each text or pair."""
        return ScoreRequest(items=tuple(map(_item, self._texts())))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one prediction with its only label, or a batch of them."""
        _, scores = sole(answer, request)
        predicted = [[{"score": self.number(score), "label": "LABEL_0"}] for score in scores]
        return predicted[0] if self._is_one() else predicted

    def _is_one(self) -> bool:
        return isinstance(self.inputs, str) or (
            bool(self.inputs) and isinstance(self.inputs[0], str)
        )

    def _texts(self) -> list[list[str]]:
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        pair = [text for text in self.inputs if isinstance(text, str)]
        return [pair] if pair else [texts for texts in self.inputs if isinstance(texts, list)]


class Rerank(Switched):
    """Texts by falling score."""

    query: str
    texts: Texts
    return_text: bool = False

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each text."""
        return ScoreRequest(items=(ask(self.query, self.texts),))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns ranks, the best first; equal scores keep their order."""
        _, scores = sole(answer, request)
        ranks: list[Payload] = []
        for i in best_first(scores):
            text = {"text": self.texts[i]} if self.return_text else {}
            ranks.append({"index": i, **text, "score": self.number(scores[i])})
        return ranks


def _item(texts: list[str]) -> Item:
    return Rendered("", (texts[0],)) if len(texts) == 1 else ask(texts[0], [texts[1]])


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error with TEI's statuses: 413 size, 422 text, 424 model, 429 load.

    A body that is malformed has 422 there, and a score that failed 424, so that our 400 and 422
    become these.
    """
    status = {400: 422, 422: 424}.get(error.status, error.status)
    kinds = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
    return status, {"error": error.message, "error_type": kinds.get(status, "Validation")}
