"""Relaying of all nodes' metrics, which any client may ask for and every node has to answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import httpx2

from panoply.wire.bounded import BoundedAnswer, ask_async

DEADLINE = 5.0
"""Seconds in which a node says its metrics."""
FRESH_SECONDS = 1.0
"""Seconds for which metrics are not asked for again, however many clients ask."""


class RelayedMetrics:
    """Our own metrics of all nodes.

    Args:
        agents: returns the URLs of the nodes' metrics.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        agents: Callable[[], Awaitable[Sequence[str]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.agents, self.clock = agents, clock
        self._latest = ""
        self._asked: float | None = None
        """Time of the latest answer."""
        self._turn = asyncio.Lock()

    async def text(self) -> str:
        """Returns the metrics; a node that does not answer is left out."""
        async with self._turn:
            if self._asked is None or self.clock() - self._asked >= FRESH_SECONDS:
                self._latest = await _relayed(await self.agents())
                self._asked = self.clock()
            return self._latest


async def _relayed(agents: Sequence[str]) -> str:
    async with httpx2.AsyncClient(trust_env=False) as client:
        requests = (ask_async(client, "GET", url, DEADLINE) for url in agents)
        answers = await asyncio.gather(*requests, return_exceptions=True)
    lines: dict[str, None] = {}  # in order, each once
    for answer in answers:
        if isinstance(answer, BoundedAnswer):
            lines |= dict.fromkeys(x for x in answer.text.splitlines() if "panoply_" in x)
    return "\n".join([*lines, ""])
