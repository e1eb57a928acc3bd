"""What a run tells while it goes on: lines with the time, and bars for long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
QUIET_SECONDS = 60.0
"""Where no bar can be drawn (a log file), a line appears this often."""


class Watch:
    """Tells the steps of a run on a console; a silent one tells nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)

    def say(self, text: str) -> None:
        """Prints a line with the time; its text is data, and a command in it stays whole."""
        line = f"{time.strftime('[%X]')} {text}"
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int) -> Generator[Advance]:
        """Yields a function that is told how many of `total` were just done."""
        if not self.console.is_terminal:
            yield self._lines(what, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)

    def _lines(self, what: str, total: int) -> Advance:
        begun = told = time.monotonic()
        count = 0

        def advance(done: int) -> None:
            nonlocal told, count
            count += done
            now = time.monotonic()
            if now - told >= QUIET_SECONDS and count < total:
                told = now
                left = (now - begun) / count * (total - count) if count else float("nan")
                self.say(f"{what}: {count:,} of {total:,}, about {left / 60:.0f} min left")

        return advance


@contextmanager
def exit_if_unusable(console: Console) -> Generator[None]:
    """Turns what a user can mend into one sentence and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(2)
