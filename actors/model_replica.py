"""A replica of a reward model: its queue, its batches, its health and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from pydantic import JsonValue
from ray.util.metrics import Counter, Gauge, Histogram

from actors.replica import READ_CHARACTERS, Portion, Replica
from panoply.config.serve import ServedModelConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.reward_model import RewardModel
from panoply.model.gather import Tokenized, merge_prefixes
from panoply.serve.batching import Batcher, BatchStats, Overloaded, OversizedRequest
from panoply.serve.calls import ReplicaRequest
from panoply.wire.limits import ItemSize
from panoply.wire.request import Chat, Item, RequestError, Score, scored

MAX_FAILURES = 8
"""Consecutive failed forwards that mark a replica unhealthy. A single bad input is bisected out of
its batch and stays below this."""
HUNG_SECONDS = 600.0
"""Seconds of a forward that will never end; its batch was made for less than one."""
RENDERED_SHARE = 32
"""Characters that are rendered in the time in which one is tokenized."""
SIZES = [2.0**k for k in range(4, 18)]
WAITS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
Conversations: TypeAlias = Sequence[Tokenized]
"""One conversation to score, or the two of a pair to compare."""


class Queue(Protocol):
    """The queue before a model, of its own or shared with others (`Batcher`)."""

    @property
    def num_queued(self) -> int:
        """Responses in the queue."""
        ...

    @property
    def forward_seconds(self) -> float:
        """Seconds since the forward that runs has begun; 0 while none does."""
        ...

    def check_room(self, num_responses: int, num_tokens: int = 0, num_coming: int = 0) -> None:
        """Checks that so much more may wait; raises Overloaded."""
        ...

    async def score(self, conversations: Conversations, timeout: float) -> list[Any]:
        """Returns the output of each conversation; raises Overloaded or OversizedRequest."""
        ...


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens that a forward computed."""

    num_needed: int
    """Tokens that the batch needs, shared ones once."""
    num_positions: int
    """Positions computed: those tokens, padding, and prompts of trees that were split."""


class RewardModelReplica(Replica[Conversations]):
    """A replica of a reward model; requests that wait together are scored together."""

    def __init__(self, config: ServedModelConfig) -> None:
        """Loads the model; raises as `load_reward_model` does."""
        silence_libraries()
        torch.set_num_threads(max(1, int(config.scaling.cpus)))
        self.model: RewardModel[Any] = load_reward_model(
            config.where, trust_remote_code=config.trust_remote_code
        )
        self.model.prepack()
        super().__init__(config, self.model.provenance)
        self.tokenizer = self.model.request_tokenizer()
        self.metrics = ReplicaMetrics(config.name)
        self.queue: Queue = Batcher[Any](self._forward, config.batch, self._observe)
        self.computed = Computed(0, 0)
        """Tokens of the last forward."""
        self.num_failures = 0
        """Consecutive failed forwards."""

    def about(self) -> dict[str, JsonValue]:
        """Returns kind, objectives with their scales, provenance, limits in tokens, and size."""
        objectives: list[JsonValue] = []
        for name, scale in self.model.objectives.items():
            low, high = scale or (None, None)
            objectives.append({"name": name, "low": low, "high": high})
        provenance = dict(self.provenance)
        rendering = self.model.backbone.renderer.rendering
        limits: dict[str, JsonValue] = {
            "prompt_tokens": rendering.max_prompt_tokens,
            "response_tokens": rendering.max_response_tokens,
        }
        if rendering.max_tokens:
            limits["conversation_tokens"] = rendering.max_tokens
        parameters = self.model.backbone.decoder.model.parameters()
        return {
            "kind": provenance["kind"],
            "objectives": objectives,
            "provenance": {**provenance},
            "limits": limits,
            "cost": {"parameters": sum(tensor.numel() for tensor in parameters)},
        }

    def check_health(self) -> None:
        """Raises RuntimeError where no forward succeeds or one does not end: Serve restarts it."""
        if self.queue.forward_seconds > HUNG_SECONDS:
            raise RuntimeError(f"a forward runs for {self.queue.forward_seconds:.0f} s")
        if self.num_failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self.num_failures} forwards failed")

    def check(self, request: ReplicaRequest) -> None:
        """Checks that the model can answer a request.

        Raises:
            RequestError: a pairwise model is asked for scores, an objective is unknown, or too many
                responses wait.
        """
        name = self.config.name
        if self.model.is_pairwise and not request.compares:
            raise RequestError(
                f"{name!r} is a pairwise model, which compares two responses and scores none "
                "by itself: ask `/v1/compare`"
            )
        if request.compares and self.provenance["kind"] == "process":
            raise RequestError(
                f"{name!r} scores steps, whose scores have no temperature that makes "
                "probabilities of them: ask for its scores (`/v1/rewards`)"
            )
        num_responses = sum(len(item.responses) for item in request.items)
        try:
            self.queue.check_room(num_responses, num_coming=self.num_reading)
        except Overloaded as full:
            raise self._busy(full) from full
        if unknown := sorted(set(request.weights) - set(self.model.objectives)):
            allowed = sorted(self.model.objectives) or "none"
            raise RequestError(f"{name!r} has no objective {unknown}; it has {allowed}")

    def read(self, item: Item, compares: bool) -> list[Conversations]:
        """Returns each conversation of an item, or its pair, as tokens.

        Raises:
            ValueError: there is no prompt, or as `RequestTokenizer.read`.
        """
        if compares:
            assert isinstance(item, Chat), item
            a, b = item.responses
            return [self.model.read_pair(item.prompt, a, b)]
        if isinstance(item, Chat) and not item.prompt:
            raise ValueError(
                f"{self.config.name!r} scores a reply to a prompt, and none was sent: send it with "
                "the response (verl: in `extra_info` of the data set, under `prompt`)"
            )
        return [[conversation] for conversation in self.tokenizer.read(item)]

    async def score(
        self, units: Sequence[Conversations], request: ReplicaRequest
    ) -> list[tuple[Score, ...]]:
        """Returns the score of each conversation, or the preference of each pair.

        Raises:
            RequestError: 429, the queue is full; 413, these are more than ever fit into it.
        """
        self.metrics.queued(self.queue.num_queued)
        conversations: list[Tokenized] = []
        for unit in units:
            conversations += unit
        try:
            outputs = await self.queue.score(conversations, request.timeout)
        except Overloaded as full:
            raise self._busy(full) from full
        except OversizedRequest as error:
            raise RequestError(f"{error}: send several requests", 413) from error
        size = 2 if request.compares else 1
        groups = [outputs[start : start + size] for start in range(0, len(outputs), size)]
        return [
            (self._to_score(unit, group, request),)
            for unit, group in zip(units, groups, strict=True)
        ]

    def _busy(self, full: Overloaded) -> RequestError:
        return RequestError(f"{self.config.name!r} is busy: {full.args[0]}", 429, full.retry_after)

    def portions(self, item: Item, place: int, compares: bool) -> list[Portion]:
        """Returns the parts in which an item is read.

        Where the prompt may have to be tokenized again with every response (a template whose header
        is no token of its own, text in another template), few of them are read at a time.
        """
        size, num = ItemSize.of(item), len(item.responses)
        is_once = isinstance(item, Chat) and self.model.backbone.renderer.mark
        if is_once or compares or size.rendered <= READ_CHARACTERS:
            return [Portion(item, place, max(size.characters, size.rendered // RENDERED_SHARE))]
        num_each = max(1, num * READ_CHARACTERS // size.rendered)
        parts: list[Portion] = []
        for start in range(0, num, num_each):
            part = replace(item, responses=item.responses[start : start + num_each])
            parts.append(Portion(part, place, ItemSize.of(part).rendered))
        return parts

    def _to_score(
        self, unit: Conversations, outputs: Sequence[Any], request: ReplicaRequest
    ) -> Score:
        """Converts the outputs of a conversation or of a pair; a failed one becomes an error."""
        for output in outputs:
            if isinstance(output, TimeoutError):
                return Score(error=str(output), transient=True)
            if isinstance(output, Exception):
                return Score(error=f"the model failed: {type(output).__name__}: {output}")
        if not request.compares:
            return self.model.to_score(outputs[0], unit[0], request)
        return scored(
            self.model.preference_probability(outputs[0], outputs[1]),
            num_tokens=sum(len(conversation.tokens) for conversation in unit),
            num_cut=sum(conversation.num_cut for conversation in unit),
        )

    def _forward(self, conversations: Sequence[Tokenized]) -> list[Any]:
        """Runs one batch; called in the queue's thread."""
        gathered, backbone = merge_prefixes(conversations), self.model.backbone
        before = backbone.decoder.num_positions
        self.num_failures += 1
        with torch.inference_mode():
            outputs = self.model.forward(gathered.trees)
        self.num_failures = 0
        num_separate = sum(len(conversation.tokens) for conversation in conversations)
        self.computed = Computed(
            num_needed=gathered.num_tokens if backbone.shares_prefixes else num_separate,
            num_positions=backbone.decoder.num_positions - before,
        )
        return [outputs[place] for place in gathered.places]

    def _observe(self, stats: BatchStats) -> None:
        self.metrics.batch(stats, self.computed)


class ReplicaMetrics:
    """Prometheus metrics of a replica's batches."""

    def __init__(self, model: str) -> None:
        tags = {"tag_keys": ("model",)}
        self.metrics: dict[str, Any] = {
            "tokens": Histogram("panoply_batch_tokens", "Tokens of a batch.", SIZES, **tags),
            "shared": Counter("panoply_shared_tokens_total", "Tokens spared by sharing.", **tags),
            "padding": Counter("panoply_padding_tokens_total", "Padding computed.", **tags),
            "responses": Counter("panoply_responses_total", "Responses scored.", **tags),
            "waited": Histogram("panoply_queue_seconds", "Longest wait in a batch.", WAITS, **tags),
            "seconds": Histogram("panoply_batch_seconds", "Time of a forward.", WAITS, **tags),
            "queue": Gauge("panoply_queue_responses", "Responses that wait.", **tags),
        }
        for metric in self.metrics.values():
            metric.set_default_tags({"model": model})

    def queued(self, num: int) -> None:
        """Records how many responses wait."""
        self.metrics["queue"].set(num)

    def batch(self, stats: BatchStats, computed: Computed) -> None:
        """Records a batch."""
        self.metrics["tokens"].observe(computed.num_positions)
        for name, num in (
            ("shared", stats.num_separate_tokens - computed.num_needed),
            ("padding", computed.num_positions - computed.num_needed),
            ("responses", stats.num_responses),
        ):
            if num > 0:  # a counter takes no 0
                self.metrics[name].inc(num)
        self.metrics["waited"].observe(stats.waited)
        self.metrics["seconds"].observe(stats.seconds)
