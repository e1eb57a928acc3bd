"""SGLang's reward endpoints: native `/classify` or `/encode`, `/v1/embeddings`, its `/v1/rerank`.

    {"model": "m", "text": "..." | ["..."]}  or  {"input_ids": [ids] | [[ids]]}
    [{"embedding": [7.8], "meta_info": {"id": "...", "prompt_tokens": 42}}]

    {"model": "m", "input": "..." | ["..."] | [ids] | [[ids]]}
    {"data": [{"object": "embedding", "embedding": [7.8], "index": 0}], ...}

    {"query": "q", "documents": ["a", "b"], "top_n": 1}
    [{"score": 7.8, "document": "b", "index": 1, "meta_info": {...}}]  best first

Scores are raw in all of them. A single text of `/classify` is answered with an object, a list with
a list. `/v1/embeddings`, which verl reads, also takes what OpenAI's and vLLM's clients send there.
A text that the model's limits cut has `"truncated": true` in `meta_info` or its entry.

Where it differs from SGLang:
1. `/v1/classify`, `/v1/score` and `/v1/rerank` are vLLM's (`panoply.wire.vllm`), since no key tells
   the two apart: SGLang's list of ranks is at `/sglang/v1/rerank`, where the other paths are too,
   so that a base URL may end with `/sglang`. Its `/v1/classify` puts one score through a softmax,
   which answers 1.0 to everything.
2. BOS comes once, by the artefact's rule.
3. Images, embeddings in place of text, LoRA adapters and any key that is not read are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from panoply.wire.dialect import ModelPayload
from panoply.wire.messages import ManyTokenIds, TextOrTokens, Texts, TokenIds, items_of, user_turn
from panoply.wire.request import (
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    beside_score,
    best_first,
    require_score,
    single_model_scores,
)
from panoply.wire.vectors import VectorPayload
from panoply.wire.vllm import NO_INSTRUCTION, TEXT_ALONE, PoolingPayload, error_fields, usage

OWN_WEIGHTS = "a model answers with its own weights; serve the adapted one as a model of its own"
OWN_POOLING = "the model pools where it was trained to; leave it out"


class SglangClassify(ModelPayload):
    """Rendered or tokenized conversations."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "background",
            "external_trace_header",
            "http_worker_ipc",
            "log_metrics",
            "modalities",
            "priority",
            "received_time",
            "rid",
            "routing_key",
            "sampling_params",
            "user",
        }
    )
    refused: ClassVar[Mapping[str, str]] = {
        "image_data": TEXT_ALONE,
        "video_data": TEXT_ALONE,
        "audio_data": TEXT_ALONE,
        "input_embeds": TEXT_ALONE,
        "embed_overrides": TEXT_ALONE,
        "positional_embed_overrides": TEXT_ALONE,
        "embed_override_token_id": TEXT_ALONE,
        "lora_path": OWN_WEIGHTS,
        "lora_id": OWN_WEIGHTS,
        "multi_item_delimiter_indices": OWN_POOLING,
        "token_indices_to_pool": OWN_POOLING,
        "decision_layout": OWN_POOLING,
        "is_cross_encoder_request": "pairs are scored at `/sglang/v1/rerank` and `/score`",
        "return_pooled_hidden_states": "scores alone are answered; leave it out",
        "return_prompt_token_ids": "scores alone are answered; leave it out",
    }

    dimensions: Literal[1] | None = None
    text: str | Texts | None = None
    input_ids: TokenIds | ManyTokenIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("name either `text` or `input_ids`")
        return self

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        conversations = self.input_ids if self.text is None else self.text
        assert conversations is not None
        return ScoreRequest(items=items_of(conversations), models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns a list, or the one entry of a text that came alone."""
        _, scores = single_model_scores(answer, request)
        entries = [
            {"embedding": [require_score(score)], "meta_info": _meta(f"{answer.id}-{i}", score)}
            for i, score in enumerate(scores)
        ]
        ids = self.input_ids
        alone = isinstance(self.text, str) or (ids and isinstance(ids[0], int))
        return entries[0] if alone else entries


class SglangEmbeddings(PoolingPayload, VectorPayload):
    """Rendered or tokenized conversations in OpenAI's words."""

    harmless: ClassVar[frozenset[str]] = PoolingPayload.harmless | {"rid"}
    refused: ClassVar[Mapping[str, str]] = {
        **PoolingPayload.refused,
        "embed_overrides": TEXT_ALONE,
        "embed_override_token_id": TEXT_ALONE,
        "lora_path": OWN_WEIGHTS,
        "messages": "conversations in messages are scored at `/classify` and `/v1/rewards`",
        "normalize": "a score of length 1 says nothing; leave it out",
        "use_activation": "scores are raw here; `/classify` applies a sigmoid",
    }

    input: TextOrTokens
    dimensions: Literal[1] | None = None

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        return ScoreRequest(items=items_of(self.input), models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the score as an embedding of size 1."""
        model, scores = self.scores(answer, request)
        data: list[Payload] = []
        for i, score in enumerate(scores):
            embedding = self.vector(require_score(score))
            entry = {"object": "embedding", "embedding": embedding, "index": i}
            data.append({**entry, **beside_score(score)})
        return {"object": "list", "data": data, "model": model.model, "usage": usage(scores)}


class SglangRerank(ModelPayload):
    """Documents by falling score, as a bare list."""

    harmless: ClassVar[frozenset[str]] = frozenset({"priority", "rid", "user"})
    refused: ClassVar[Mapping[str, str]] = {"instruct": NO_INSTRUCTION}

    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each document."""
        item = user_turn(self.query, self.documents)
        return ScoreRequest(items=(item,), models=self.models())

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns ranks, the best first; equal scores keep their order."""
        _, scores = single_model_scores(answer, request)
        ranks: list[Payload] = []
        for i in best_first(scores)[: self.top_n]:
            document = {"document": self.documents[i]} if self.return_documents else {}
            meta = _meta(f"{answer.id}-{i}", scores[i])
            score = require_score(scores[i])
            ranks.append({"score": score, **document, "index": i, "meta_info": meta})
        return ranks


def _meta(name: str, score: Score) -> Payload:
    return {"id": name, "prompt_tokens": score.num_tokens, **beside_score(score)}


def refuse(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as the native endpoints have it."""
    return error.status, {"error": {"message": error.message}}


def refuse_openai(error: RequestError) -> tuple[int, Payload]:
    """Returns an error as SGLang's OpenAI endpoints have it: flat, unlike vLLM's."""
    return error.status, {"object": "error", **error_fields(error)}
