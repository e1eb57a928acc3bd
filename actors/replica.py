"""One reward model behind a queue: calls of any origin in, scores with their details out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from pydantic import JsonValue
from ray.util.metrics import Counter, Gauge, Histogram

from actors.internal_error import internal_error
from actors.voices import Voice, voice_of
from panoply.config.serve import BatchConfig, ServedModelConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.backbone.backbone import quiet
from panoply.model.gather import Tokenized, merge_prefixes
from panoply.serve.batching import Batcher, BatchStats, Overloaded
from panoply.serve.calls import ReplicaRequest, each_alone
from panoply.wire.request import (
    Chat,
    Item,
    ModelAnswer,
    RenderedText,
    RequestError,
    Score,
    scored,
)
from panoply.wire.templates import as_chat

V = TypeVar("V")
MOST_FAILURES = 8
"""Failed forwards in a row after which a judge is taken for broken. One text that a model chokes on
fails alone at last, and fewer times."""
SIZES = [2.0**k for k in range(4, 18)]
WAITS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]


@dataclass(frozen=True, slots=True)
class Computed:
    """What a forward computed."""

    num_needed: int
    """Tokens that the batch needs, shared ones once."""
    num_positions: int
    """Positions computed: those tokens, padding, and prompts of trees that were split."""


class RewardModelReplica(Generic[V]):
    """Answers calls; those that wait together are scored together.

    Args:
        name: of the model.
        voice: the model.
        batch: how the queue collects.
        rendered_by: template family of rendered text; empty: the model's own.
        watch: told of every batch, and what its forward computed.
    """

    def __init__(
        self,
        name: str,
        voice: Voice[V],
        batch: BatchConfig,
        rendered_by: str = "",
        watch: Callable[[BatchStats, Computed], None] = lambda *_: None,
    ) -> None:
        self.name, self.voice, self.rendered_by = name, voice, rendered_by
        self.computed = Computed(0, 0)
        self.num_failures = 0
        """Forwards that failed since one last went well."""
        self.queue = Batcher(self._run, batch, lambda stats: watch(stats, self.computed))
        self.readers = ThreadPoolExecutor(1, "read")

    def about(self) -> dict[str, JsonValue]:
        """Returns what the model is."""
        objectives: list[JsonValue] = [
            {"name": name, "low": ends[0] if ends else None, "high": ends[1] if ends else None}
            for name, ends in self.voice.objectives.items()
        ]
        provenance = dict(self.voice.provenance)
        return {"kind": provenance["kind"], "objectives": objectives, "provenance": {**provenance}}

    async def answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a call.

        A call that gets no answer at all gets its error as a value, since what is raised changes
        its class between processes.
        """
        try:
            return await self._answer(call)
        except Exception as error:
            return internal_error(f"model {self.name!r}", error)

    async def _answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        if self.voice.reader is None and not call.compares:
            return RequestError(
                f"{self.name!r} is a pairwise model, which compares two responses and scores none "
                "by itself: ask `/v1/compare`"
            )
        if unknown := sorted(set(call.weights) - set(self.voice.objectives)):
            known = sorted(self.voice.objectives) or "none"
            return RequestError(f"{self.name!r} has no objective {unknown}; it has {known}")
        read = await asyncio.get_running_loop().run_in_executor(
            self.readers, lambda: [self._read(item, call.compares) for item in call.items]
        )
        flat = [one for item in read for one in item]
        try:
            said = await self.queue.score(
                [one for one in flat if not isinstance(one, Score)], call.timeout
            )
        except Overloaded as full:
            return RequestError(f"{self.name!r} is busy: {full.args[0]}", 429, full.retry_after)
        heard = iter(said)
        told = self._compared if call.compares else self._scored
        items = tuple(told(item, heard, call) for item in read)
        provenance = self.voice.provenance if "provenance" in call.details else {}
        return ModelAnswer(model=self.name, items=items, provenance=provenance)

    def _read(self, item: Item, compares: bool = False) -> list[Tokenized | Score]:
        """Returns the conversations of an item; in place of one that cannot be read, why."""
        try:
            return [*(self._pair(item) if compares else self._conversations(item))]
        except ValueError as error:
            if compares or len(item.responses) == 1:
                return [Score(error=str(error))]
        return [one for alone in each_alone(item) for one in self._read(alone)]

    def _pair(self, item: Item) -> Sequence[Tokenized]:
        assert isinstance(item, Chat), item
        return self.voice.pair(item.prompt, *item.responses)

    def _conversations(self, item: Item) -> list[Tokenized]:
        reader = self.voice.reader
        assert reader is not None, self.name
        if isinstance(item, RenderedText) and self.rendered_by:
            item = as_chat(item, self.rendered_by)
        match item:
            case Chat(prompt=()):
                raise ValueError(
                    f"{self.name!r} scores a reply to a prompt, and none was sent: send it with "
                    "the response (verl: in `extra_info` of the data set, under `prompt`)"
                )
            case Chat():
                return reader.messages(item.prompt, item.responses)
            case RenderedText():
                return reader.text(item.prompt, item.responses)
            case _:
                return [reader.ids(tokens) for tokens in item.responses]

    def _run(self, conversations: Sequence[Tokenized]) -> list[V]:
        gathered, backbone = merge_prefixes(conversations), self.voice.backbone
        begun = backbone.decoder.num_positions
        self.num_failures += 1
        with torch.inference_mode():
            said = self.voice.hear(gathered.trees)
        self.num_failures = 0
        separate = sum(len(one.tokens) for one in conversations)
        needed = gathered.num_tokens if backbone.shares_prefixes else separate
        self.computed = Computed(needed, backbone.decoder.num_positions - begun)
        return [said[place] for place in gathered.places]

    def _scored(
        self,
        read: Sequence[Tokenized | Score],
        heard: Iterator[V | Exception],
        call: ReplicaRequest,
    ) -> tuple[Score, ...]:
        """Returns the score of each response of an item."""

        def score(one: Tokenized | Score) -> Score:
            if isinstance(one, Score):
                return one
            said = next(heard)
            return _failed(said) or self.voice.say(cast(V, said), call, one)

        return tuple(map(score, read))

    def _compared(
        self,
        read: Sequence[Tokenized | Score],
        heard: Iterator[V | Exception],
        call: ReplicaRequest,
    ) -> tuple[Score, ...]:
        """Returns the probability of an item's pair."""
        if isinstance(read[0], Score):
            return (read[0],)
        said = [next(heard) for _ in read]
        if failed := next(filter(None, map(_failed, said)), None):
            return (failed,)
        pair = [conversation for conversation in read if isinstance(conversation, Tokenized)]
        score = scored(
            self.voice.prefer(*cast(list[V], said)),
            num_tokens=sum(len(conversation.tokens) for conversation in pair),
            num_cut=sum(conversation.num_cut for conversation in pair),
        )
        return (score,)


def _failed(said: object) -> Score | None:
    """Returns the error of a response that the model says nothing of."""
    if isinstance(said, TimeoutError):
        return Score(error=str(said), transient=True)
    if isinstance(said, Exception):
        return Score(error=f"the model failed: {type(said).__name__}: {said}")
    return None


class ServedReplica:
    """A judge of a reward model in its own process; what Serve makes replicas of."""

    def __init__(self, arm: ServedModelConfig) -> None:
        """Loads the model; raises as `load_reward_model` does."""
        quiet()
        torch.set_num_threads(max(1, int(arm.scaling.cpus)))
        model = load_reward_model(arm.where, trust_remote_code=arm.trust_remote_code)
        self.meters = ReplicaMetrics(arm.name)
        self.judge = RewardModelReplica(
            arm.name, voice_of(model), arm.batch, arm.rendered_by, self.meters.batch
        )

    async def answer(self, call: ReplicaRequest) -> ModelAnswer | RequestError:
        """Returns a score or an error for every response of a call."""
        self.meters.queued(self.judge.queue.num_queued)
        return await self.judge.answer(call)

    def about(self) -> dict[str, JsonValue]:
        """Returns what the model is."""
        return self.judge.about()

    def check_health(self) -> None:
        """Raises where nothing is scored any more (a device in error): Serve restarts it."""
        if self.judge.num_failures >= MOST_FAILURES:
            raise RuntimeError(f"the last {self.judge.num_failures} forwards failed")


class ReplicaMetrics:
    """What Prometheus is told of a judge's batches."""

    def __init__(self, model: str) -> None:
        tags = {"tag_keys": ("model",)}
        made = {
            "tokens": Histogram("panoply_batch_tokens", "Computed in a batch.", SIZES, **tags),
            "shared": Counter("panoply_shared_tokens_total", "Not computed, as shared.", **tags),
            "padding": Counter("panoply_padding_tokens_total", "Computed for nobody.", **tags),
            "responses": Counter("panoply_responses_total", "Responses scored.", **tags),
            "waited": Histogram("panoply_queue_seconds", "Longest wait in a batch.", WAITS, **tags),
            "seconds": Histogram("panoply_batch_seconds", "Of a forward.", WAITS, **tags),
            "queue": Gauge("panoply_queue_responses", "Responses that wait.", **tags),
        }
        for meter in made.values():
            meter.set_default_tags({"model": model})
        self.made: dict[str, Any] = made

    def queued(self, num: int) -> None:
        """Tells how many responses wait."""
        self.made["queue"].set(num)

    def batch(self, stats: BatchStats, computed: Computed) -> None:
        """Tells of a batch."""
        self.made["tokens"].observe(computed.num_positions)
        for name, num in (
            ("shared", stats.num_separate_tokens - computed.num_needed),
            ("padding", computed.num_positions - computed.num_needed),
            ("responses", stats.num_responses),
        ):
            if num > 0:  # a counter takes no 0
                self.made[name].inc(num)
        self.made["waited"].observe(stats.waited)
        self.made["seconds"].observe(stats.seconds)
