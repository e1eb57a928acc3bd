"""vLLM's pooling endpoints: `/classify`, `/pooling`, `/score`, `/rerank`.

    {"model": "m", "input": "text" | ["a"] | [ids] | [[ids]], "use_activation": false}
    {"model": "m", "messages": [..., {"role": "assistant", "content": "..."}]}
    {"data": [{"index": 0, "label": "LABEL_0", "probs": [12.4], "num_classes": 1}], ...}

    {"model": "m", "text_1": "q" | ["q"], "text_2": ["a", "b"]}
    {"data": [{"index": 0, "object": "score", "score": 0.9}], ...}

    {"model": "m", "query": "q", "documents": ["a", {"text": "b"}] | "a", "top_n": 0}
    {"results": [{"index": 1, "document": {"text": "b"}, "relevance_score": 0.9}], ...}  best first

As in vLLM, a score goes through a sigmoid unless `use_activation` is false (older names of the
switch: `activation`, `softmax`).

A text that the model's limits cut has `"truncated": true` in its entry.

Where it differs from vLLM:
1. `add_special_tokens` is not read: BOS comes once, by the artefact's rule, whatever is received.
2. Texts are cut by the artefact's own limits alone. A limit of the client's on tokens
   (`truncate_prompt_tokens`, `max_tokens_per_query`, `max_tokens_per_doc`) is accepted where no
   text has more, and is an error where it would cut one.
3. A client's own template (`chat_template`, `chat_template_kwargs`, `instruction`,
   `add_generation_prompt`, `continue_final_message`) is refused: the model was trained on its own.
4. `text_1` or `query` is a user's turn and `text_2` or a document the response to it.
5. `/pooling` answers the task classify alone: a reward model has no embedding, nor token scores. Of
   its encodings it has no `bytes` and no fp8, which keeps two digits of a score.
6. Empty lists are answered with empty lists, where vLLM refuses them.
7. Any other key that is not read here is refused, where vLLM drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from panoply.wire.dialect import ModelPayload, Strict, status_name
from panoply.wire.messages import (
    DialogTurns,
    TextOrTokens,
    TextPart,
    dialog,
    items_of,
    joined,
    user_turn,
)
from panoply.wire.request import (
    ModelAnswer,
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    beside_score,
    best_first,
    check_limit,
    require_score,
    sigmoid,
    single_model_scores,
)
from panoply.wire.vectors import VectorPayload

OWN_TEMPLATE = "the model renders by the chat template that it was trained on; leave it out"
NO_INSTRUCTION = (
    "a reward model's template has no place for an instruction; put it into the query, or send it "
    "as a system turn of `messages` (`/classify`, `/v1/rewards`)"
)
TEXT_ALONE = "text alone is scored here; leave it out"

Limit: TypeAlias = Annotated[int, Field(ge=0)]
"""Tokens; 0 is no limit."""


class PoolingPayload(ModelPayload):
    """Keys that vLLM's pooling requests share with SGLang's in OpenAI's words."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {"add_special_tokens", "cache_salt", "priority", "request_id", "user"}
    )
    refused: ClassVar[Mapping[str, str]] = {
        "add_generation_prompt": "a conversation ends with the reply that is scored; leave it out",
        "chat_template": OWN_TEMPLATE,
        "chat_template_kwargs": OWN_TEMPLATE,
        "continue_final_message": "the reply that is scored has ended; leave it out",
        "media_io_kwargs": TEXT_ALONE,
        "mm_processor_kwargs": TEXT_ALONE,
    }

    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """An error where a text has more tokens; -1: as many as the model takes."""
    truncation_side: Literal["left", "right"] | None = None
    """Without effect: no text is cut by the client's limit."""
    padding: Literal["do_not_pad"] | None = None

    def scores(self, answer: ScoreAnswer, request: ScoreRequest) -> tuple[ModelAnswer, list[Score]]:
        """Returns the one model of an answer and its scores, if the client's limits cut no text.

        Raises:
            RequestError: as `panoply.wire.request.single_model_scores` and `check_limit` do.
        """
        model, scores = single_model_scores(answer, request)
        check_limit("truncate_prompt_tokens", self.truncate_prompt_tokens, scores)
        return model, scores


class VllmPayload(PoolingPayload):
    """Keys that all of vLLM's payloads share."""

    refused: ClassVar[Mapping[str, str]] = {
        **PoolingPayload.refused,
        "normalize": "was removed from vLLM too; `use_activation` false gives raw scores",
        "raw_scores": "is another server's; `use_activation` false gives raw scores",
    }

    use_activation: bool | None = None
    activation: bool | None = None
    softmax: bool | None = None

    def number(self, score: Score) -> float:
        """Returns the number that the client reads: a sigmoid unless it was switched off."""
        switches = (self.use_activation, self.activation, self.softmax)
        is_on = next((switch for switch in switches if switch is not None), True)
        return sigmoid(require_score(score)) if is_on else require_score(score)

    def listed(
        self,
        kind: str,
        answer: ScoreAnswer,
        request: ScoreRequest,
        entry: Callable[[Score], dict[str, Payload]],
    ) -> Payload:
        """Returns an answer whose `data` has an entry for each score."""
        model, scores = self.scores(answer, request)
        data = [
            {"index": i, **entry(score), **beside_score(score)} for i, score in enumerate(scores)
        ]
        return {
            "id": f"{kind}-{answer.id}",
            "object": "list",
            "created": answer.created,
            "model": model.model,
            "usage": usage(scores) | {"completion_tokens": 0, "prompt_tokens_details": None},
            "data": data,
        }


class VllmConversations(VllmPayload):
    """Whole conversations: rendered, tokenized, or one in messages."""

    input: TextOrTokens | None = None
    messages: DialogTurns | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("name either `input` or `messages`")
        return self

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        if self.messages is not None:
            return ScoreRequest(items=(dialog(self.messages),), models=self.models())
        assert self.input is not None
        return ScoreRequest(items=items_of(self.input), models=self.models())


class VllmClassify(VllmConversations):
    """`/classify`: the score is the last of `probs`."""

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each conversation."""
        return self.listed(
            "classify",
            answer,
            request,
            lambda score: {"label": "LABEL_0", "probs": [self.number(score)], "num_classes": 1},
        )


class VllmPooling(VllmConversations, VectorPayload):
    """`/pooling`: the score is the only number of `data[i].data`."""

    refused: ClassVar[Mapping[str, str]] = {
        **VllmPayload.refused,
        "dimensions": "a score has one dimension; leave it out",
    }

    task: Literal["classify"] | None = None

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each conversation."""
        return self.listed(
            "pool",
            answer,
            request,
            lambda score: {"object": "pooling", "data": self.vector(self.number(score))},
        )


class ContentParts(Strict):
    """Text in vLLM's parts; images are refused."""

    content: Annotated[list[TextPart], Field(fail_fast=True)]


class TextObject(BaseModel):
    """Text as an object, as Cohere and Jina have documents: its other keys are not ranked."""

    model_config = ConfigDict(strict=True, frozen=True)

    text: str


AnyText: TypeAlias = str | TextObject | ContentParts
AnyTexts: TypeAlias = AnyText | Annotated[list[AnyText], Field(fail_fast=True)]


class VllmTextPairs(VllmPayload):
    """Keys of `/score` and `/rerank`: limits on each side of a pair, and no instruction."""

    refused: ClassVar[Mapping[str, str]] = {
        **VllmPayload.refused,
        "instruction": NO_INSTRUCTION,
        "instruct": NO_INSTRUCTION,
    }

    max_tokens_per_query: Limit | None = None
    """An error where a pair has more tokens, since its query may have."""
    max_tokens_per_doc: Limit | None = None
    """An error where a pair has more tokens, since its document may have."""

    def scores(self, answer: ScoreAnswer, request: ScoreRequest) -> tuple[ModelAnswer, list[Score]]:
        """Returns the one model of an answer and its scores, if the client's limits cut no text."""
        model, scores = super().scores(answer, request)
        check_limit("max_tokens_per_query", self.max_tokens_per_query or None, scores)
        check_limit("max_tokens_per_doc", self.max_tokens_per_doc or None, scores)
        return model, scores


class VllmScore(VllmTextPairs):
    """`/score`: 1:1, 1:N or N:N texts."""

    refused: ClassVar[Mapping[str, str]] = {
        **VllmTextPairs.refused,
        "query": "is SGLang's; `/v1/score` is vLLM's here, with `queries` and `documents`",
    }

    text_1: AnyTexts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: AnyTexts = Field(
        validation_alias=AliasChoices("text_2", "documents", "items", "data_2")
    )

    @model_validator(mode="after")
    def _fitting_lengths(self) -> Self:
        first, second = len(_texts(self.text_1)), len(_texts(self.text_2))
        if first not in (1, second):
            raise ValueError(f"lengths must be 1:1, 1:N or N:N, got {first}:{second}")
        return self

    def request(self) -> ScoreRequest:
        """Returns one item where one text meets many, else one for each pair."""
        first, second = _texts(self.text_1), _texts(self.text_2)
        if len(first) == 1:
            items = (user_turn(first[0], second),)
        else:
            items = tuple(user_turn(a, [b]) for a, b in zip(first, second, strict=True))
        return ScoreRequest(items=items, models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns one entry of `data` for each pair."""
        return self.listed(
            "score",
            answer,
            request,
            lambda score: {"object": "score", "score": self.number(score)},
        )


class VllmRerank(VllmTextPairs):
    """`/rerank`: documents by falling score; vLLM's payload, Jina's and Cohere's."""

    refused: ClassVar[Mapping[str, str]] = {
        **VllmTextPairs.refused,
        "max_chunks_per_doc": "no document is split into chunks here; leave it out",
        "relevant_spans": "a reward model has a score and no spans; leave it out",
    }

    query: AnyText
    documents: AnyTexts
    top_n: int = 0
    """0 or less: all of them."""
    return_documents: bool = True
    rank_fields: Annotated[list[Literal["text"]], Field(max_length=64)] | None = None
    """Documents have no other field."""

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each document."""
        item = user_turn(_text(self.query), _texts(self.documents))
        return ScoreRequest(items=(item,), models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns `results`, the best first; equal scores keep their order."""
        model, scores = self.scores(answer, request)
        texts = _texts(self.documents)
        order = best_first(scores)
        results: list[Payload] = []
        for i in order[: self.top_n] if self.top_n > 0 else order:
            document = {"document": {"text": texts[i]}} if self.return_documents else {}
            relevance = {"relevance_score": self.number(scores[i])}
            results.append({"index": i, **document, **relevance, **beside_score(scores[i])})
        return {
            "id": f"rerank-{answer.id}",
            "model": model.model,
            "usage": usage(scores),
            "results": results,
        }


def _text(text: AnyText) -> str:
    match text:
        case str():
            return text
        case TextObject():
            return text.text
        case ContentParts():
            return joined(text.content)


def _texts(texts: AnyTexts) -> list[str]:
    return list(map(_text, texts)) if isinstance(texts, list) else [_text(texts)]


def usage(scores: list[Score]) -> dict[str, int | None]:
    """Returns the tokens that were scored, in OpenAI's words."""
    num_tokens = sum(score.num_tokens for score in scores)
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error in OpenAI's shape."""
    return error.status, {"error": error_fields(error)}


def error_fields(error: RequestError) -> dict[str, Payload]:
    """Returns the keys of an error in OpenAI's words."""
    kind = status_name(error.status)
    return {"message": error.message, "type": kind, "param": None, "code": error.status}
