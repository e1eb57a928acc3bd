"""Requests to replicas, and how a client's request is sharded into them by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from panoply.wire.feedback import Outcome
from panoply.wire.request import Chat, Detail, Item, RenderedText, ScoreRequest, Tokens

NUM_BUCKETS = 64
"""Groups of prompts. Those of one bucket go to one replica, so this bounds the shards of a request,
and the replicas that can share its work."""
KEY_CHARACTERS = 512
"""Leading characters that stand for the prompt of a text without a known one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRequest:
    """Items of one bucket, for one model."""

    items: tuple[Item, ...]
    bucket: int
    timeout: float
    """Seconds from now after which nobody waits for the answer."""
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    details: frozenset[Detail] = frozenset()
    compares: bool = False
    """Asks for the probability, of each item, that its first response is the better one."""
    caller: str = ""
    """Name of the key that was sent to the gateway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRequest:
    """Carries outcomes of one bandit's decisions to its replica."""

    outcomes: tuple[Outcome, ...]
    caller: str
    """Name of the key that was sent to the gateway."""
    timeout: float
    """Seconds from now after which nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A replica's request, and the places of its items in the client's request."""

    request: ReplicaRequest
    places: tuple[int, ...]


def fingerprint_of(description: Mapping[str, JsonValue]) -> str:
    """Returns a hash of what a model says of itself, by which two versions of it are told apart."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def bucket_of(item: Item) -> int:
    """Returns the bucket of an item's prompt: requests that share it meet in one replica."""
    match item:
        case Chat(prompt=()):
            text = (item.responses[0] if item.responses else "")[:KEY_CHARACTERS]
        case Chat():
            text = "\0".join(f"{turn['role']}\0{turn['content']}" for turn in item.prompt)
        case RenderedText():
            text = item.prompt or (item.responses[0] if item.responses else "")[:KEY_CHARACTERS]
        case _:
            text = str(item.responses[0][: KEY_CHARACTERS // 4] if item.responses else ())
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest) % NUM_BUCKETS


def each_alone(item: Item) -> list[Item]:
    """Returns an item for each response, so that one that is at fault fails alone."""
    if isinstance(item, Tokens):
        return [Tokens((tokens,)) for tokens in item.responses]
    return [replace(item, responses=(response,)) for response in item.responses]


def shard_by_prompt(request: ScoreRequest, timeout: float) -> Iterator[Shard]:
    """Yields a shard for each bucket of prompts in a request."""
    buckets: dict[int, list[int]] = {}
    for place, item in enumerate(request.items):
        if item.responses:
            buckets.setdefault(bucket_of(item), []).append(place)
    for bucket, places in buckets.items():
        shard = ReplicaRequest(
            items=tuple(request.items[place] for place in places),
            bucket=bucket,
            timeout=timeout,
            weights=request.weights,
            details=request.details,
            compares=request.compares,
            caller=request.caller,
        )
        yield Shard(shard, tuple(places))
