"""Time that is left for an answer, known to all that is awaited for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import monotonic

RESERVE_SHARE, LONGEST_RESERVE = 0.05, 1.0
"""Share of the time, and its most seconds, that are kept to put an answer together."""
_ENDS: ContextVar[float] = ContextVar("_ENDS", default=math.inf)
"""Time of `time.monotonic` at which what is awaited should have answered."""


def seconds_left() -> float:
    """Returns the seconds within which to answer; infinite where nothing bounds them."""
    return max(0.0, _ENDS.get() - monotonic())


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Cancels what is awaited inside after some seconds.

    Inside, `seconds_left` tells a little less, so that whoever looks at it answers before, with
    what came until then. Tasks that are started inside know it too.

    Raises:
        TimeoutError: what is awaited took longer.
    """
    reserve = min(RESERVE_SHARE * seconds, LONGEST_RESERVE)
    before = _ENDS.set(min(_ENDS.get(), monotonic() + seconds - reserve))
    try:
        async with asyncio.timeout(seconds if seconds < math.inf else None):
            yield
    finally:
        _ENDS.reset(before)
