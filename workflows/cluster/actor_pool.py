"""Actors of a cluster that embed and score for a run, on any of its nodes.

An actor loads libraries and a model for longer than a small step computes. These start once, and
serve all steps of a run until it needs their CPUs for something else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from panoply.report.progress import RunLogger
from workflows.cluster.local_pool import Made
from workflows.cluster.ray_cluster import MAX_FAILURES

NODE_LOST = (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
"""Errors of a call whose actor, item or answer is gone."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class PoolActor:
    """An actor that calls whatever it is given."""

    def __init__(self, modules: Sequence[str]) -> None:
        for module in modules:
            import_module(module)

    def is_ready(self) -> None:
        """Returns once the actor has started."""

    def call(self, function: Callable[[Item], Result], item: Item) -> Result:
        """Returns what an importable function returns."""
        return function(item)


class ActorPool:
    """Actors that are started once, as many as find room; lost ones are started anew elsewhere.

    Args:
        num_actors: most of them.
        bundle: resources of each.
        logger: told when one is lost.
        modules: imported by an actor when it starts, before it is needed.
    """

    def __init__(
        self,
        num_actors: int,
        bundle: Mapping[str, float],
        logger: RunLogger,
        modules: Sequence[str] = (),
    ) -> None:
        self.num_actors, self.logger, self.modules = num_actors, logger, modules
        self._remote: Any = ray.remote(PoolActor).options(
            num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0)
        )
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Actors by the answer that says that they have started."""
        self._idle: list[Any] = []

    def __enter__(self) -> ActorPool:
        """Starts the actors, and returns itself."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the actors."""
        self.free()

    def free(self) -> None:
        """Ends the actors, whose resources others need; the next call starts them again."""
        for actor in list(self._actors):
            self._end(actor)
        self._starting, self._idle = {}, []

    def _start(self) -> None:
        for _ in range(self.num_actors - len(self._actors)):
            actor = self._remote.remote(self.modules)
            self._actors.append(actor)
            self._starting[actor.is_ready.remote()] = actor

    def _end(self, actor: Any) -> None:
        if actor in self._actors:
            ray.kill(actor)
            self._actors.remove(actor)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yields what an importable function returns for each item, as it comes.

        A call whose actor was lost is made again by another.

        Args:
            function: called on any node.
            items: arguments, or references to them.

        Raises:
            Exception: what the function raised.
            RayActorError, ObjectLostError: more was lost than a step may lose.
        """
        waiting, num_lost = deque(items), 0
        calls: dict[Any, tuple[Any, Item]] = {}
        try:
            while waiting or calls:
                self._start()
                while waiting and self._idle:
                    actor, item = self._idle.pop(0), waiting.popleft()
                    calls[actor.call.remote(function, item)] = actor, item
                [answer], _ = ray.wait([*calls, *self._starting])
                actor = calls[answer][0] if answer in calls else self._starting[answer]
                try:
                    result = ray.get(answer)
                except NODE_LOST:
                    num_lost += 1
                    if num_lost > MAX_FAILURES:
                        raise
                    self.logger.info("a worker was lost: another one does its work again")
                    self._end(actor)
                    if answer in calls:
                        waiting.appendleft(calls.pop(answer)[1])
                    self._starting.pop(answer, None)
                    continue
                self._starting.pop(answer, None)
                self._idle.append(actor)
                if calls.pop(answer, None):
                    yield result
        except RayTaskError as error:
            raise error.cause from error
        finally:
            for actor, _ in calls.values():
                self._end(actor)  # the block was left in the midst of their work

    def map_made(
        self,
        make: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Any, ...],
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """Yields what `make(*arguments)`, called once in every actor, returns for each item.

        An actor calls `make` again only for other arguments.
        """
        return self.map(Made.by(make, arguments), items)
