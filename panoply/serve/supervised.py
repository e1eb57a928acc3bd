"""Background work that goes on after any fault, and says how old its latest success is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

LOG = logging.getLogger("ray.serve")
"""Logger of Ray Serve, which writes to the log of the replica."""


@dataclass(slots=True, kw_only=True)
class SupervisedLoop:
    """Work that is done again and again.

    A fault is logged by its class, and the work is tried again after the usual pause.
    """

    name: str
    work: Callable[[], Awaitable[None]]
    pause: float
    """Seconds between two rounds."""
    deadline: float
    """Seconds after which a round is given up."""
    max_age: float = 30.0
    """Seconds without a success that make its process unhealthy."""
    clock: Callable[[], float] = time.monotonic
    succeeded: float | None = None
    """Time of the latest success; None before the first round."""

    @property
    def age(self) -> float:
        """Seconds since the latest success, or since the loop was started."""
        return 0.0 if self.succeeded is None else self.clock() - self.succeeded

    @property
    def is_well(self) -> bool:
        """Says whether the latest success of the loop is not too old."""
        return self.age <= self.max_age

    async def round(self) -> None:
        """Does the work once, within its deadline; a fault ends in the log."""
        if self.succeeded is None:
            self.succeeded = self.clock()
        try:
            async with asyncio.timeout(self.deadline):
                await self.work()
            self.succeeded = self.clock()
        except Exception as error:  # whatever it is, the next round may do better
            kind = type(error).__name__
            LOG.error("%s failed: %s; the last success is %.0f s old", self.name, kind, self.age)

    async def run(self) -> None:
        """Does the work until it is canceled."""
        while True:
            await self.round()
            await asyncio.sleep(self.pause)

    @contextmanager
    def running(self) -> Generator[None]:
        """Runs the loop beside what is done in the context."""
        task = asyncio.get_running_loop().create_task(self.run())
        try:
            yield
        finally:
            task.cancel()
