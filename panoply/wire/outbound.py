"""The dialects from the client's side: payloads for an item, and the scores in an answer.

Raw scores are asked for wherever a dialect has a switch, under each of its names: a server that
knows another one would squash the scores in silence. Where a dialect has one label a model, a
second one is an error, since nothing tells which of them is the reward.

Kinds of items by dialect:
1. panoply: messages and text; all responses to a prompt at once.
2. slime: messages and text; one response at a time.
3. vllm (`/classify`): messages one conversation at a time, text or token ids many at a time.
4. sglang (native `/classify`): text or token ids.
5. openrlhf: text.
6. tei (`/predict`): text, and a single user's turn with its response as a pair.

Where it carries no messages, they are written by a family's template (`panoply.wire.templates`).
BOS stands in front of the text for OpenRLHF's servers, which add none, where that family writes
one, and for no other: those add it. Text that came rendered keeps or loses BOS by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from panoply.wire.chat_templates import TEMPLATES, without_bos
from panoply.wire.dialect import explain
from panoply.wire.request import (
    Chat,
    Item,
    Payload,
    RenderedText,
    RequestError,
    Score,
    ScoreRequest,
    Tokens,
    scored,
)
from panoply.wire.rewards import payload_of, read_answer
from panoply.wire.templates import render

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Post:
    """Payload for some responses of an item, and the parser of its answer."""

    payload: Mapping[str, Payload]
    read: Callable[[JsonValue], tuple[Score, ...]]
    """Returns the responses' scores in order; raises ValueError where it is no such answer."""
    timed: bool = False
    """Whether the payload may say how many seconds are left for the answer."""

    def payload_within(self, seconds: float) -> Mapping[str, Payload]:
        """Returns the payload with the seconds that are left for the answer."""
        return {**self.payload, "timeout": seconds} if self.timed else self.payload


@dataclass(frozen=True, slots=True)
class Dialect:
    """Client's side of one protocol."""

    path: str
    posts: Callable[[Item, str, str], Sequence[Post]]
    """Returns what to post for an item, a model's name ("" for none) and a template ("" for none).
    The answers together have the item's responses in their order.

    Raises RequestError, 422, where the protocol cannot carry the item.
    """
    repeats_prompt: bool = True
    """Whether a payload has the prompt again for each response."""


class _Answer(BaseModel):
    """Part of an answer that is read. Numbers are not taken from strings.

    A number may be null or not finite, and is then no score.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


def _panoply(item: Item, model: str, template: str) -> list[Post]:
    if isinstance(item, Tokens):
        raise _cannot("panoply", "token ids")
    request = ScoreRequest(
        items=(item,), models=(model,) if model else (), details=frozenset({"objectives"})
    )

    def read(answer: JsonValue) -> tuple[Score, ...]:
        return read_answer(answer, request).models[0].items[0]

    return [Post(payload_of(request), read, timed=True)]


class _Rewards(_Answer):
    rewards: list[float | None]
    extra_logs: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


def _openrlhf(item: Item, model: str, template: str) -> list[Post]:
    prompt, texts = _texts("openrlhf", item, template, has_bos=True)
    payload = {
        "query": texts,
        "prompts": [prompt] * len(texts),
        "labels": [None if isinstance(item, Tokens) else item.label] * len(texts),
    }

    def read(answer: JsonValue) -> tuple[Score, ...]:
        parsed = _read(_REWARDS, answer)
        scores: list[Score] = []
        for i, reward in enumerate(parsed.rewards):
            objectives: dict[str, float] = {}
            for name, log in parsed.extra_logs.items():
                # A log of another length than the rewards is none of single responses.
                if isinstance(log, list) and len(log) == len(parsed.rewards):
                    value = log[i]
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        objectives[name] = value
            scores.append(_score(reward, objectives))
        return _all(scores, len(texts))

    return [Post(payload, read)]


class _Detailed(_Answer):
    score: float | None
    objectives: dict[str, float] = Field(default_factory=dict[str, float])


def _slime(item: Item, model: str, template: str) -> list[Post]:
    if isinstance(item, Tokens):
        raise _cannot("slime", "token ids")
    _check_prompt("slime", item)

    def read(answer: JsonValue) -> tuple[Score, ...]:
        sample = _read(_SAMPLE, answer)
        detailed = sample if isinstance(sample, _Detailed) else _Detailed(score=sample)
        return (_score(detailed.score, detailed.objectives),)

    return [
        Post({"prompt": item.prompt, "response": response, "label": item.label}, read)
        for response in item.responses
    ]


class _Probs(_Answer):
    index: int
    probs: list[float | None]


class _Classified(_Answer):
    data: list[_Probs]


def _vllm(item: Item, model: str, template: str) -> list[Post]:
    raw: dict[str, Payload] = {"use_activation": False, "activation": False, "softmax": False}
    if model:
        raw["model"] = model

    def read_many(num: int) -> Callable[[JsonValue], tuple[Score, ...]]:
        def read(answer: JsonValue) -> tuple[Score, ...]:
            data = sorted(_read(_CLASSIFIED, answer).data, key=lambda entry: entry.index)
            if [entry.index for entry in data] != list(range(len(data))):
                raise ValueError(f"`index` is {[entry.index for entry in data][:10]}")
            return _all([_only(entry.probs) for entry in data], num)

        return read

    _check_prompt("vllm", item)
    if isinstance(item, Chat) and not template:
        conversations = [
            [*item.prompt, {"role": "assistant", "content": response}]
            for response in item.responses
        ]
        chat: dict[str, Payload] = {"add_generation_prompt": False, "add_special_tokens": False}
        return [Post({**raw, **chat, "messages": turns}, read_many(1)) for turns in conversations]
    inputs = item.responses if isinstance(item, Tokens) else _texts("vllm", item, template)[1]
    return [Post({**raw, "input": inputs}, read_many(len(inputs)))]


class _Embedding(_Answer):
    embedding: list[float | None]


def _sglang(item: Item, model: str, template: str) -> list[Post]:
    named = {"model": model} if model else {}
    if isinstance(item, Tokens):
        payload: dict[str, Payload] = {**named, "input_ids": item.responses}
    else:
        payload = {**named, "text": _texts("sglang", item, template)[1]}

    def read(answer: JsonValue) -> tuple[Score, ...]:
        entries = _read(_EMBEDDINGS, answer)
        return _all([_only(entry.embedding) for entry in entries], len(item.responses))

    return [Post(payload, read)]


class _Label(_Answer):
    score: float | None


def _tei(item: Item, model: str, template: str) -> list[Post]:
    _check_prompt("tei", item)
    if isinstance(item, Chat) and not template:
        if len(item.prompt) != 1:
            raise _cannot("tei", "more than one turn before the response, unless `template` is set")
        inputs = [[item.prompt[0]["content"], response] for response in item.responses]
    else:
        inputs = [[text] for text in _texts("tei", item, template)[1]]

    def read(answer: JsonValue) -> tuple[Score, ...]:
        scores: list[Score] = []
        for labels in _read(_LABELS, answer):
            scores.append(_only([label.score for label in labels]))
        return _all(scores, len(inputs))

    return [Post({"inputs": inputs, "raw_scores": True, "truncate": False}, read)]


DIALECTS: Mapping[str, Dialect] = {
    "panoply": Dialect("/v1/rewards", _panoply, repeats_prompt=False),
    "openrlhf": Dialect("/get_reward", _openrlhf),
    "slime": Dialect("/slime", _slime),
    "vllm": Dialect("/classify", _vllm),
    "sglang": Dialect("/classify", _sglang),
    "tei": Dialect("/predict", _tei),
}
"""Dialects by name, with the path where each is expected."""


def _texts(
    dialect: str, item: Item, template: str, *, has_bos: bool = False
) -> tuple[str | None, list[str]]:
    """Returns the prompt, where it is known, and prompt + response of each response."""
    if isinstance(item, Tokens):
        raise _cannot(dialect, "token ids")
    if isinstance(item, RenderedText):
        texts = [f"{item.prompt}{response}" for response in item.responses]
        if has_bos:
            return item.prompt or None, texts
        return without_bos(item.prompt) or None, list(map(without_bos, texts))
    _check_prompt(dialect, item)
    if not template:
        raise _cannot(dialect, "messages, unless `template` says how they are written")
    form = TEMPLATES[template]
    start = (form.bos if has_bos else "") + render(item.prompt, template)
    replies = [{"role": "assistant", "content": response} for response in item.responses]
    return start + form.openings["assistant"], [start + render((r,), template) for r in replies]


def _check_prompt(dialect: str, item: Item) -> None:
    """Checks that a conversation has a prompt: other servers score a reply as if it had none."""
    if isinstance(item, Chat) and not item.prompt:
        raise _cannot(dialect, "response without its prompt")


def _cannot(dialect: str, what: str) -> RequestError:
    return RequestError(f"an endpoint of {dialect!r} takes no {what}", 422)


def _read(kind: TypeAdapter[T], answer: JsonValue) -> T:
    try:
        return kind.validate_python(answer)
    except ValidationError as error:
        raise ValueError(explain(error)) from error


_REWARDS = TypeAdapter(_Rewards)
_SAMPLE: TypeAdapter[float | _Detailed | None] = TypeAdapter(
    float | _Detailed | None, config=ConfigDict(strict=True)
)
_CLASSIFIED = TypeAdapter(_Classified)
_EMBEDDINGS = TypeAdapter(list[_Embedding])
_LABELS = TypeAdapter(list[list[_Label]])


def _score(value: float | None, objectives: Mapping[str, float] | None = None) -> Score:
    if value is None:
        return Score(error="the endpoint gave no score: null")
    return scored(value, objectives=objectives)


def _only(values: Sequence[float | None]) -> Score:
    if len(values) != 1:
        return Score(error=f"the endpoint's model has {len(values)} labels; a reward model has one")
    return _score(values[0])


def _all(scores: Sequence[Score], num: int) -> tuple[Score, ...]:
    if len(scores) != num:
        raise ValueError(f"{len(scores)} scores for {num} responses")
    return tuple(scores)
