"""SGLang's reward endpoints: native `/classify`, and `/v1/embeddings`.

    {"model": "m", "text": "..." | ["..."]}  or  {"input_ids": [ids] | [[ids]]}
    [{"embedding": [7.8], "meta_info": {"id": "...", "prompt_tokens": 42}}]

    {"model": "m", "input": "..." | ["..."] | [ids] | [[ids]]}
    {"data": [{"object": "embedding", "embedding": [7.8], "index": 0}], ...}

Scores are raw in both. A single text of `/classify` is answered with an object, a list with a list.

Where we differ:
1. `/v1/classify` is vLLM's (`panoply.wire.vllm`): SGLang's puts one score through a softmax, which
   answers 1.0 to everything.
2. BOS comes once, by the artefact's rule.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from panoply.wire.endpoint import Call, status_name
from panoply.wire.request import Payload, RequestError, ScoreAnswer, ScoreRequest, sole, value_of
from panoply.wire.turns import ManyTokenIds, TextOrTokens, Texts, TokenIds, items_of
from panoply.wire.vllm import vector


class Classify(Call):
    """Rendered or tokenized conversations."""

    model: str | None = None
    text: str | Texts | None = None
    input_ids: TokenIds | ManyTokenIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("name either `text` or `input_ids`")
        return self

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        given = self.input_ids if self.text is None else self.text
        assert given is not None
        return ScoreRequest(items=items_of(given), models=_named(self.model))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns a list, or the one entry of a text that came alone."""
        _, scores = sole(answer, request)
        entries = [
            {
                "embedding": [value_of(score)],
                "meta_info": {"id": f"{answer.id}-{i}", "prompt_tokens": score.num_tokens},
            }
            for i, score in enumerate(scores)
        ]
        ids = self.input_ids
        alone = isinstance(self.text, str) or (ids and isinstance(ids[0], int))
        return entries[0] if alone else entries


class Embeddings(Call):
    """Rendered or tokenized conversations in OpenAI's words."""

    model: str | None = None
    input: TextOrTokens
    encoding_format: Literal["float", "base64"] = "float"

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        return ScoreRequest(items=items_of(self.input), models=_named(self.model))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the score as an embedding of size 1."""
        model, scores = sole(answer, request)
        num_tokens = sum(score.num_tokens for score in scores)
        data = [
            {
                "object": "embedding",
                "embedding": vector(value_of(score), self.encoding_format),
                "index": i,
            }
            for i, score in enumerate(scores)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": model.model, "usage": usage}


def _named(model: str | None) -> tuple[str, ...]:
    return () if model is None else (model,)


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as the native endpoints have it."""
    return error.status, {"error": {"message": error.message}}


def refuse_openai(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as SGLang's OpenAI endpoints have it: flat, unlike vLLM's."""
    kind = status_name(error.status)
    return error.status, {
        "object": "error",
        "message": error.message,
        "type": kind,
        "param": None,
        "code": error.status,
    }
