"""vLLM's pooling endpoints: `/classify`, `/pooling`, `/score`, `/rerank`.

    {"model": "m", "input": "text" | ["a"] | [ids] | [[ids]], "use_activation": false}
    {"model": "m", "messages": [..., {"role": "assistant", "content": "..."}]}
    {"data": [{"index": 0, "label": "LABEL_0", "probs": [12.4], "num_classes": 1}], ...}

    {"model": "m", "text_1": "q" | ["q"], "text_2": ["a", "b"]}
    {"data": [{"index": 0, "object": "score", "score": 0.9}], ...}

    {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 0}
    {"results": [{"index": 1, "document": {"text": "b"}, "relevance_score": 0.9}], ...}  best first

As there, a score goes through a sigmoid unless `use_activation` is false (older names of the
switch: `activation`, `softmax`).

Where we differ:
1. `add_special_tokens` is not read: BOS comes once, by the artefact's rule, whatever is received.
2. `truncate_prompt_tokens` is not read: the artefact's own limits hold.
3. A template of the client's (`chat_template`, `chat_template_kwargs`, `add_generation_prompt`,
   `continue_final_message`) is refused: the model was trained on its own.
4. `text_1` or `query` is a user's turn and `text_2` or a document the response to it.
5. `/pooling` answers the task classify alone: a reward model has no embedding, nor token scores.
6. Empty lists are answered with empty lists, where vLLM refuses them.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, JsonValue, model_validator

from panoply.wire.endpoint import Call, status_name
from panoply.wire.request import (
    Chat,
    ModelAnswer,
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    sigmoid,
    sole,
    value_of,
)
from panoply.wire.turns import Conversation, TextOrTokens, Texts, chat, items_of


class Switched(Call):
    """What all of vLLM's payloads share: a model's name and the switch of the activation."""

    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None

    def models(self) -> tuple[str, ...]:
        """Returns the model's name, where there is one."""
        return () if self.model is None else (self.model,)

    def number(self, score: Score) -> float:
        """Returns a score as it is said: through the sigmoid unless it was switched off."""
        named = (self.use_activation, self.activation, self.softmax)
        on = next((switch for switch in named if switch is not None), True)
        return sigmoid(value_of(score)) if on else value_of(score)


class Conversations(Switched):
    """Whole conversations: rendered, tokenized, or one in messages."""

    input: TextOrTokens | None = None
    messages: Conversation | None = None
    add_generation_prompt: Literal[False] = False
    continue_final_message: Literal[False] = False
    chat_template: None = None
    chat_template_kwargs: dict[str, JsonValue] | None = Field(default=None, max_length=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("name either `input` or `messages`")
        return self

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        if self.messages is not None:
            return ScoreRequest(items=(chat(self.messages),), models=self.models())
        assert self.input is not None
        return ScoreRequest(items=items_of(self.input), models=self.models())


class Classify(Conversations):
    """`/classify`: the score is the last of `probs`."""

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each conversation."""
        model, scores = sole(answer, request)
        data = [
            {"index": i, "label": "LABEL_0", "probs": [self.number(score)], "num_classes": 1}
            for i, score in enumerate(scores)
        ]
        return _listed("classify", answer, model, scores) | {"data": data}


class Pooling(Conversations):
    """`/pooling`: the score is the only number of `data[i].data`."""

    task: Literal["classify"] | None = None
    encoding_format: Literal["float", "base64"] = "float"

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each conversation."""
        model, scores = sole(answer, request)
        data = [
            {
                "index": i,
                "object": "pooling",
                "data": vector(self.number(score), self.encoding_format),
            }
            for i, score in enumerate(scores)
        ]
        return _listed("pool", answer, model, scores) | {"data": data}


class TextPairs(Switched):
    """`/score`: 1:1, 1:N or N:N texts."""

    text_1: str | Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: str | Texts = Field(
        validation_alias=AliasChoices("text_2", "documents", "items", "data_2")
    )

    @model_validator(mode="after")
    def _fitting_lengths(self) -> Self:
        first, second = len(_listed_texts(self.text_1)), len(_listed_texts(self.text_2))
        if first not in (1, second):
            raise ValueError(f"lengths must be 1:1, 1:N or N:N, got {first}:{second}")
        return self

    def request(self) -> ScoreRequest:
        """Returns one item where one text meets many, else one for each pair."""
        first, second = _listed_texts(self.text_1), _listed_texts(self.text_2)
        if len(first) == 1:
            items = (ask(first[0], second),)
        else:
            items = tuple(ask(a, [b]) for a, b in zip(first, second, strict=True))
        return ScoreRequest(items=items, models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each pair."""
        model, scores = sole(answer, request)
        data = [
            {"index": i, "object": "score", "score": self.number(score)}
            for i, score in enumerate(scores)
        ]
        return _listed("score", answer, model, scores) | {"data": data}


class Rerank(Switched):
    """`/rerank`: documents by falling score."""

    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=0)] | None = None
    """None or 0: all of them."""

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each document."""
        return ScoreRequest(items=(ask(self.query, self.documents),), models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns `results`, the best first; equal scores keep their order."""
        model, scores = sole(answer, request)
        results = [
            {
                "index": i,
                "document": {"text": self.documents[i]},
                "relevance_score": self.number(scores[i]),
            }
            for i in best_first(scores)[: self.top_n or None]
        ]
        usage = _usage(scores)
        return {
            "id": f"rerank-{answer.id}",
            "model": model.model,
            "usage": {name: usage[name] for name in ("prompt_tokens", "total_tokens")},
            "results": results,
        }


def ask(text: str, responses: list[str]) -> Chat:
    """Returns a user's turn and the responses to it."""
    return Chat(({"role": "user", "content": text},), tuple(responses))


def best_first(scores: list[Score]) -> list[int]:
    """Returns the places of scores from high to low, by the raw score: a sigmoid saturates."""
    return sorted(range(len(scores)), key=lambda i: -value_of(scores[i]))


def vector(number: float, encoding: Literal["float", "base64"]) -> Payload:
    """Returns a number as the only one of a vector: a list, or its little-endian float32."""
    if encoding == "float":
        return [number]
    return base64.b64encode(struct.pack("<f", number)).decode()


def _listed_texts(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _listed(
    kind: str, answer: ScoreAnswer, model: ModelAnswer, scores: list[Score]
) -> dict[str, Payload]:
    return {
        "id": f"{kind}-{answer.id}",
        "object": "list",
        "created": answer.created,
        "model": model.model,
        "usage": _usage(scores),
    }


def _usage(scores: list[Score]) -> dict[str, int | None]:
    num_tokens = sum(score.num_tokens for score in scores)
    return {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error in OpenAI's shape."""
    kind = status_name(error.status)
    told = {"message": error.message, "type": kind, "param": None, "code": error.status}
    return error.status, {"error": told}
