"""A replica of a backbone that models of adapters share: one copy of the weights, one queue.

A batch holds conversations of any of the models, and has a forward for each that is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter

from actors.internal_error import internal_error
from actors.model_replica import Computed, ReplicaMetrics, RewardModelReplica
from actors.replica import Replica
from panoply.config.serve import ServedModelConfig, SharedBackboneConfig
from panoply.hub.artefact.sharing import SharedModel, load_on_backbone
from panoply.hub.backbone.adapters import SharedBackbone
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.model.gather import Tokenized
from panoply.serve.batching import Batcher, BatchStats
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import ModelAnswer, RequestError


class SharedBackboneReplica:
    """A replica of a backbone, with the models whose adapters lie on it.

    Its settings name the models and may change while it serves: a model that is new loads beside
    the others, which are answered meanwhile, and one that is gone is taken off.
    """

    def __init__(self, config: SharedBackboneConfig) -> None:
        silence_libraries()
        torch.set_num_threads(max(1, int(config.scaling.cpus)))
        self.key = config.key
        self.shared: SharedBackbone | None = None
        self.models: dict[str, asyncio.Task[AdapterReplica]] = {}
        """Models by member, those that still load among them."""
        self.loader = ThreadPoolExecutor(1, "load")
        self.metrics = ReplicaMetrics(config.name)
        self.batcher = Batcher[Any](self._forward, config.batch, self._observe, kind=model_of)
        self.releases: set[asyncio.Task[None]] = set()
        """Models that are being taken off."""

    async def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Loads the models that are new, and takes those off that are gone.

        The first time it waits until they have loaded; later the others go on.

        Raises:
            ValueError, OSError: none of the first models can be loaded.
        """
        by_member = settings["models"]
        is_first = not self.models
        for member in by_member.keys() - self.models.keys():
            config = TypeAdapter(ServedModelConfig).validate_python(by_member[member])
            self.models[member] = asyncio.create_task(self._load(config))
        for member in self.models.keys() - by_member.keys():
            release = asyncio.create_task(self._release(self.models.pop(member)))
            self.releases.add(release)
            release.add_done_callback(self.releases.discard)
        if is_first:
            loaded = await asyncio.gather(*self.models.values(), return_exceptions=True)
            errors = [each for each in loaded if isinstance(each, BaseException)]
            if errors and len(errors) == len(loaded):
                raise errors[0]

    async def answer(self, request: ReplicaRequest, member: str) -> ModelAnswer | RequestError:
        """Returns what one of the models answers; 503 where it is not there or cannot be loaded."""
        try:
            replica = await self._replica(member)
        except RequestError as error:
            return error
        return await replica.answer(request)

    async def about(self, member: str) -> dict[str, JsonValue]:
        """Returns what one of the models says of itself.

        Raises:
            RequestError: it is not there or cannot be loaded.
        """
        return (await self._replica(member)).about()

    def check_health(self) -> None:
        """Raises RuntimeError where no forward succeeds or one does not end: Serve restarts it."""
        for task in self.models.values():
            if task.done() and not task.exception():
                task.result().check_health()

    async def _replica(self, member: str) -> AdapterReplica:
        """Returns one of the models when it has loaded.

        Raises:
            RequestError: 503, it is not there or cannot be loaded.
        """
        task = self.models.get(member)
        if task is None:
            raise RequestError(f"{member!r} is not on this backbone any more: ask again", 503)
        try:
            return await asyncio.shield(task)
        except (ValueError, OSError) as error:
            raise RequestError(f"{member!r} could not be loaded: {error}", 503) from error
        except Exception as error:
            raise internal_error(f"loading {member!r}", error) from error

    async def _load(self, config: ServedModelConfig) -> AdapterReplica:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.loader, self._load_now, config)

    def _load_now(self, config: ServedModelConfig) -> AdapterReplica:
        """Loads a model; called in the thread that loads all of them, one after the other."""
        model = load_on_backbone(config.where, self.shared)
        if self.shared is None:
            model.prepack()
        self.shared = model.shared
        return AdapterReplica(config, model, self.key, self.batcher, self.metrics)

    async def _release(self, task: asyncio.Task[AdapterReplica]) -> None:
        """Takes a model off the backbone, when it has loaded."""
        (loaded,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(loaded, AdapterReplica):
            await asyncio.get_running_loop().run_in_executor(self.loader, loaded.release)

    def _forward(self, conversations: Sequence[Tokenized]) -> list[Any]:
        """Runs one forward for each model in a batch; called in the queue's thread."""
        places: dict[AdapterReplica, list[int]] = {}
        for place, conversation in enumerate(conversations):
            places.setdefault(model_of(conversation), []).append(place)
        outputs: list[Any] = [None] * len(conversations)
        num_needed = num_positions = 0
        for replica, at in places.items():
            of_model = replica.forward([conversations[place] for place in at])
            for place, output in zip(at, of_model, strict=True):
                outputs[place] = output
            num_needed += replica.computed.num_needed
            num_positions += replica.computed.num_positions
        self.computed = Computed(num_needed, num_positions)
        return outputs

    def _observe(self, stats: BatchStats) -> None:
        self.metrics.batch(stats, self.computed)


class AdapterReplica(RewardModelReplica):
    """One of the models on a shared backbone."""

    def __init__(
        self,
        config: ServedModelConfig,
        model: SharedModel,
        backbone: str,
        batcher: Batcher[Any],
        metrics: ReplicaMetrics,
    ) -> None:
        """Takes a loaded model.

        Args:
            config: its settings.
            model: on the shared backbone.
            backbone: name of the backbone.
            batcher: queue of all models on it.
            metrics: of all models on it.
        """
        Replica.__init__(self, config, model.provenance)
        self.model, self.key, self.metrics = model, backbone, metrics
        self.release = model.release
        self.tokenizer = model.request_tokenizer()
        self.queue = AddressedQueue(batcher, self)
        self.computed, self.num_failures = Computed(0, 0), 0

    def about(self) -> dict[str, JsonValue]:
        """Returns what any model says of itself, and the name of the backbone that it shares."""
        return {**super().about(), "shared_backbone": self.key}

    def forward(self, conversations: Sequence[Tokenized]) -> list[Any]:
        """Runs one forward of this model; called in the queue's thread."""
        return self._forward(conversations)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressedConversation(Tokenized):
    """A conversation, and the model that is to score it."""

    replica: AdapterReplica

    @classmethod
    def of(cls, conversation: Tokenized, replica: AdapterReplica) -> AddressedConversation:
        """Returns a conversation with the model that is to score it."""
        values = {field.name: getattr(conversation, field.name) for field in fields(Tokenized)}
        return cls(**values, replica=replica)


def model_of(conversation: Tokenized) -> AdapterReplica:
    """Returns the model that is to score a conversation."""
    assert isinstance(conversation, AddressedConversation)
    return conversation.replica


@dataclass(frozen=True, slots=True)
class AddressedQueue:
    """The queue of a shared backbone, as one of its models sees it."""

    batcher: Batcher[Any]
    replica: AdapterReplica

    @property
    def num_queued(self) -> int:
        """Responses in the queue, those to other models among them."""
        return self.batcher.num_queued

    @property
    def forward_seconds(self) -> float:
        """Seconds since the forward that runs has begun; 0 while none does."""
        return self.batcher.forward_seconds

    def check_room(self, num_responses: int, num_tokens: int = 0, num_coming: int = 0) -> None:
        """Checks that so much more may wait; see `Batcher.check_room`."""
        self.batcher.check_room(num_responses, num_tokens, num_coming)

    async def score(self, conversations: Sequence[Tokenized], timeout: float) -> list[Any]:
        """Queues conversations for this model and returns their outputs; see `Batcher.score`."""
        addressed = [AddressedConversation.of(each, self.replica) for each in conversations]
        return await self.batcher.score(addressed, timeout)
