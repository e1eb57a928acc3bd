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

Where we differ:
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

from panoply.wire.dialect import DialectPayload, status_name
from panoply.wire.messages import ManyTokenIds, TextOrTokens, Texts, TokenIds, items_of
from panoply.wire.request import (
    Payload,
    RequestError,
    Score,
    ScoreAnswer,
    ScoreRequest,
    check_limit,
    cut_mark,
    require_score,
    single_model_scores,
)
from panoply.wire.vectors import Dtype, Encoding, Endianness, vector
from panoply.wire.vllm import NO_INSTRUCTION, RENDERING, TEXT_ALONE, ask, best_first

OWN_WEIGHTS = "a model answers with its own weights; serve the adapted one as a model of its own"
OWN_POOLING = "the model pools where it was trained to; leave it out"


class Classify(DialectPayload):
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

    model: str | None = None
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
        given = self.input_ids if self.text is None else self.text
        assert given is not None
        return ScoreRequest(items=items_of(given), models=_named(self.model))

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


class Embeddings(DialectPayload):
    """Rendered or tokenized conversations in OpenAI's words."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {"add_special_tokens", "cache_salt", "priority", "request_id", "rid", "user"}
    )
    refused: ClassVar[Mapping[str, str]] = {
        **RENDERING,
        "embed_overrides": TEXT_ALONE,
        "embed_override_token_id": TEXT_ALONE,
        "lora_path": OWN_WEIGHTS,
        "messages": "conversations in messages are scored at `/classify` and `/v1/rewards`",
        "normalize": "a score of length 1 says nothing; leave it out",
        "use_activation": "scores are raw here; `/classify` applies a sigmoid",
    }

    model: str | None = None
    input: TextOrTokens
    encoding_format: Encoding = "float"
    embed_dtype: Dtype = "float32"
    """Of base64."""
    endianness: Endianness = "native"
    """Of base64."""
    dimensions: Literal[1] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """An error where a text has more tokens; -1: as many as the model takes."""
    truncation_side: Literal["left", "right"] | None = None
    """Not read: no text is cut by the client's limit."""
    padding: Literal["do_not_pad"] | None = None

    def request(self) -> ScoreRequest:
        """Returns an item for each conversation."""
        return ScoreRequest(items=items_of(self.input), models=_named(self.model))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns the score as an embedding of size 1."""
        model, scores = single_model_scores(answer, request)
        check_limit("truncate_prompt_tokens", self.truncate_prompt_tokens, scores)
        num_tokens = sum(score.num_tokens for score in scores)
        form = (self.encoding_format, self.embed_dtype, self.endianness)
        data = [
            {
                "object": "embedding",
                "embedding": vector(require_score(score), *form),
                "index": i,
                **cut_mark(score),
            }
            for i, score in enumerate(scores)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": model.model, "usage": usage}


class Rerank(DialectPayload):
    """Documents by falling score, as a bare list."""

    harmless: ClassVar[frozenset[str]] = frozenset({"priority", "rid", "user"})
    refused: ClassVar[Mapping[str, str]] = {"instruct": NO_INSTRUCTION}

    model: str | None = None
    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True

    def request(self) -> ScoreRequest:
        """Returns one item with a response for each document."""
        return ScoreRequest(items=(ask(self.query, self.documents),), models=_named(self.model))

    def render(self, answer: ScoreAnswer, request: ScoreRequest) -> Payload:
        """Returns ranks, the best first; equal scores keep their order."""
        _, scores = single_model_scores(answer, request)
        return [
            {
                "score": require_score(scores[i]),
                **({"document": self.documents[i]} if self.return_documents else {}),
                "index": i,
                "meta_info": _meta(f"{answer.id}-{i}", scores[i]),
            }
            for i in best_first(scores)[: self.top_n]
        ]


def _meta(name: str, score: Score) -> Payload:
    return {"id": name, "prompt_tokens": score.num_tokens, **cut_mark(score)}


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
