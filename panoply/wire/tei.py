"""Text Embeddings Inference: `/predict`, `/rerank`, either of them at `/`, and `/info`.

    {"inputs": "text", "raw_scores": true}             [{"score": 1.2, "label": "LABEL_0"}]
    {"inputs": ["a", "b"]}                             the same: a pair, not a batch
    {"inputs": [["text"], ["a", "b"]]}                 [[{...}], [{...}]]
    {"query": "q", "texts": ["a", "b"]}                [{"index": 1, "score": 0.9}], best first

As in TEI, scores go through a sigmoid unless `raw_scores` is true. huggingface_hub's client sends
`"parameters": {"function_to_apply": "none" | "sigmoid"}` instead, which is read too.

A text that the model's limits cut has `"truncated": true` beside its score; where `truncate` is
false the request is refused instead, as in TEI.

Where it differs from TEI:
1. A single text is a rendered conversation; of a pair the first is a user's turn and the second the
   response to it, as are `query` and a text.
2. `truncation_direction` is not read: the artefact's own limits cut a prompt at its beginning and a
   response at its end.
3. Empty lists are answered with empty lists, where TEI refuses them.
4. `model`, `top_n` and `options` (how the hub waits), which some clients send, are not read, as in
   TEI: `/models/NAME` before the path names a model.
5. Any other key that is not read is refused, where TEI drops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from panoply.wire.dialect import DialectPayload, Strict
from panoply.wire.limits import RequestLimits
from panoply.wire.messages import Texts, user_turn
from panoply.wire.request import (
    Item,
    Payload,
    RenderedText,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    beside_score,
    best_first,
    require_score,
    sigmoid,
    single_model_scores,
)

OneOrTwo: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=2)]
"""A text, or a pair of texts."""


class TeiPayload(DialectPayload):
    """Keys that both payloads share: the activation's switch, and whether texts may be cut."""

    harmless: ClassVar[frozenset[str]] = frozenset({"model", "options", "top_n"})

    raw_scores: bool = False
    truncate: bool | None = None
    """False: a text that the model's limits cut is an error."""
    truncation_direction: Literal["left", "Left", "right", "Right"] = "right"

    @property
    def is_raw(self) -> bool:
        """Returns whether the client reads scores as the model gives them, without a sigmoid."""
        return self.raw_scores

    def number(self, score: Score) -> float:
        """Returns the number that the client reads: a sigmoid unless it wants raw scores."""
        return require_score(score) if self.is_raw else sigmoid(require_score(score))

    def scores(self, answer: ScoreAnswer, request: ScoreRequest) -> list[Score]:
        """Returns the scores of the one model.

        Raises:
            RequestError: as `single_model_scores`; 413, a text was cut that may not be.
        """
        _, scores = single_model_scores(answer, request)
        cut = [i for i, score in enumerate(scores) if score.num_cut]
        if cut and self.truncate is False:
            raise RequestError(
                f"`truncate` is false, and the model's limits cut {scores[cut[0]].num_cut} tokens "
                f"of text {cut[0]}: shorten it, or leave `truncate` out",
                413,
            )
        return scores


class TeiParameters(Strict):
    """Parameters that huggingface_hub's client sends beside the inputs."""

    function_to_apply: Literal["sigmoid", "none"] | None = None
    top_k: int | None = None
    """Without effect: there is one label."""


class TeiPredict(TeiPayload):
    """Texts or pairs of texts."""

    inputs: (
        str
        | Annotated[list[str], Field(max_length=2)]
        | Annotated[list[OneOrTwo], Field(fail_fast=True)]
    )
    parameters: TeiParameters = TeiParameters()

    @property
    def is_raw(self) -> bool:
        """As `TeiPayload.is_raw`, unless huggingface_hub's key decides."""
        function = self.parameters.function_to_apply
        return self.raw_scores if function is None else function == "none"

    def request(self) -> ScoreRequest:
        """Returns an item for each text or pair."""
        return ScoreRequest(items=tuple(map(_item, self._texts())))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one prediction with its only label, or a batch of them."""
        predicted = [
            [{"score": self.number(score), "label": "LABEL_0", **beside_score(score)}]
            for score in self.scores(answer, request)
        ]
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


class TeiRerank(TeiPayload):
    """Texts by falling score."""

    query: str
    texts: Texts
    return_text: bool = False

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each text."""
        return ScoreRequest(items=(user_turn(self.query, self.texts),))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns ranks, the best first; equal scores keep their order."""
        scores = self.scores(answer, request)
        ranks: list[Payload] = []
        for i in best_first(scores):
            text = {"text": self.texts[i]} if self.return_text else {}
            number = self.number(scores[i])
            ranks.append({"index": i, **text, "score": number, **beside_score(scores[i])})
        return ranks


def _item(texts: list[str]) -> Item:
    if len(texts) == 1:
        return RenderedText("", (texts[0],))
    return user_turn(texts[0], [texts[1]])


def info(model: Mapping[str, Any], limits: RequestLimits) -> dict[str, Payload]:
    """Returns the answer of `/info` for a model, as far as it is known here.

    Limits on tokens are the model's own and are left out: they are two, of prompt and response.

    Args:
        model: its entry at `/v1/models`.
        limits: limits of a request.
    """
    provenance = model.get("provenance", {})
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "model_id": model["id"],
        "model_sha": provenance.get("weights"),
        "model_dtype": provenance.get("dtype"),
        "served_model_name": model["id"],
        "model_type": {"reranker": labels},
        "max_client_batch_size": limits.max_responses,
        "auto_truncate": True,
        "version": "panoply",
    }


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error with TEI's statuses: 413 size, 422 text, 424 model, 429 load.

    A body that is malformed has 422 there, and a score that failed 424, so that our 400 and 422
    become these.
    """
    status = {400: 422, 422: 424}.get(error.status, error.status)
    kinds = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
    return status, {"error": error.message, "error_type": kinds.get(status, "Validation")}
