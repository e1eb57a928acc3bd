"""Progress bars of work that other processes do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from panoply.report.progress import RunLogger, in_background

POLL_SECONDS = 0.5


@contextmanager
def polled_bar(
    logger: RunLogger, label: str, total: int, count: Callable[[], int]
) -> Generator[None]:
    """Shows a bar while the block runs.

    Args:
        logger: the run's logger.
        label: text beside the bar.
        total: count at the end.
        count: returns how many are done; called from a thread of its own.
    """

    def poll(over: threading.Event) -> None:
        shown = 0
        with logger.bar(label, total) as advance:
            while True:
                # Once more after the block: it may end between two polls.
                last = over.wait(POLL_SECONDS)
                done = count()
                advance(max(0, done - shown))
                shown = max(shown, done)
                if last:
                    return

    with in_background(poll):
        yield
