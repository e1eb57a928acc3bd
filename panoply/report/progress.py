"""Console progress of a run: lines with the time, and bars for long work."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TypeAlias

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

Advance = Callable[[int], None]
StepSink: TypeAlias = Callable[[str, Sequence[Mapping[str, Any]]], None]
"""Takes the name of a model in training, and the numbers of some of its steps."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which a terminal obeys, marks of direction, by which a line reads as another,
and surrogates, which no file takes."""
QUIET_SECONDS = 60.0
"""Time between lines where no bar can be drawn (a log file)."""
HEARTBEAT_SECONDS = 50.0
"""Silence in a log file after which a line tells that the run is alive."""
STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes that a shell gives a command that a signal ended."""


def visible(text: str) -> str:
    """Returns a text with its control characters spelled out."""
    return UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)


class Terminal(Console):
    """Prints text as text: its brackets are no markup, and its control characters no commands.

    What is printed comes from models, data and other servers as well. A reader who goes away does
    not end the run.
    """

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        super().__init__(log_path=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields what is printed, piece by piece."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def on_broken_pipe(self) -> None:
        """Goes on in silence."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunError(RuntimeError):
    """A run cannot go on, for a reason that its user can mend."""


class RunLogger:
    """Prints the steps of a run on a console; without one, nothing."""

    resume_point: Callable[[], str] | None = None
    """Returns what the same command goes on from; None where it would begin again."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self.stage_name = "starting"
        self.stage_began = self.printed = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._step_sink: StepSink | None = None

    def info(self, text: str) -> None:
        """Prints a line with the time; a command in it stays whole, and no error ends the run."""
        self.printed = time.monotonic()
        line = f"{time.strftime('[%X]')} {visible(text)}"
        with suppress(OSError):
            self.console.print(line, markup=False, emoji=False, soft_wrap=True)

    def stage(self, number: int, total: int, name: str) -> None:
        """Prints that a stage of the run begins, from which the same command would go on."""
        self._begin(name)
        self.resume_point = lambda: f"stage {number} of {total} ({name})"
        self.info(f"stage {number} of {total}: {name}")

    def end_stages(self) -> None:
        """Ends the heartbeat: what is silent from here on waits for requests and is not at work."""
        self._begin("")

    def _begin(self, name: str) -> None:
        now = time.monotonic()
        spent = self._seconds.get(self.stage_name, 0.0) + now - self.stage_began
        self._seconds[self.stage_name] = spent
        self.stage_name, self.stage_began = name, now

    def tell_seconds(self) -> None:
        """Prints how long the run took, and each of its stages; nothing where it had none."""
        self._begin("")
        stages = [f"{name} {seconds:.0f}" for name, seconds in self._seconds.items() if name]
        if len(stages) > 1:
            self.info(f"took {sum(self._seconds.values()):.0f} s: {', '.join(stages)}")

    @contextmanager
    def heartbeat(self) -> Generator[None]:
        """Prints, during the block, a line about the stage where nothing else was for a while."""
        if self.console.is_terminal:
            yield
            return

        def beat(over: threading.Event) -> None:
            while not over.wait(HEARTBEAT_SECONDS / 10):
                now = time.monotonic()
                if self.stage_name and now - self.printed >= HEARTBEAT_SECONDS:
                    minutes = (now - self.stage_began) / 60
                    self.info(f"{self.stage_name}: at work for {minutes:.0f} min")

        with in_background(beat):
            yield

    def log_steps(self, model: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends the numbers of a model's steps to the trackers of the run, if any."""
        if rows and self._step_sink:
            self._step_sink(model, rows)

    @contextmanager
    def sending_steps_to(self, sink: StepSink) -> Generator[None]:
        """Sends the steps that are logged while the block runs to a function."""
        self._step_sink = sink
        try:
            yield
        finally:
            self._step_sink = None

    @contextmanager
    def bar(self, what: str, total: int) -> Generator[Advance]:
        """Yields a function that takes how many of `total` were just done."""
        if not self.console.is_terminal:
            yield self._lines(what, total)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
        )
        with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)

    def _lines(self, what: str, total: int) -> Advance:
        begun = printed = time.monotonic()
        count = 0

        def advance(done: int) -> None:
            nonlocal printed, count
            count += done
            now = time.monotonic()
            if now - printed >= QUIET_SECONDS and count < total:
                printed = now
                left = (now - begun) / count * (total - count) if count else float("nan")
                self.info(f"{what}: {count:,} of {total:,}, about {left / 60:.0f} min left")

        return advance


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Generator[None]:
    """Runs a function in a thread during the block, and waits for its end.

    Args:
        work: takes an event that is set when the block ends, and then returns.
    """
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class StopTold(SystemExit):
    """The end of a command that a signal stopped, after the line about it was printed."""


@contextmanager
def exit_if_unread() -> Generator[None]:
    """Ends a command without a traceback where the reader of its output is gone, as `head` is."""
    try:
        try:
            yield
        finally:
            # What is still in the buffer would fail when Python ends.
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError:  # a full disk, which ends no run
                pass
    except BrokenPipeError:
        if not _is_unread():  # it was a connection to another server
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit()


def _is_unread() -> bool:
    """Returns whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def exit_if_unusable(console: Console, logger: RunLogger | None = None) -> Generator[None]:
    """Ends a command in one sentence, without a traceback, where its user can act on it.

    Errors that the user can mend give exit code 2. Ctrl-C gives 130 and SIGTERM 143, as shells do,
    and the line says from where the same command goes on.
    """

    def terminate(*_: object) -> None:
        raise Terminated

    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if on_main_thread else None
    try:
        with exit_if_unread():
            yield
    except (ValueError, OSError, RunError) as error:
        # A command in it is copied as it stands.
        text = Text.assemble(("error: ", "bold red"), visible(str(error)))
        console.print(text, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _print_stopped(console, logger)
        raise StopTold(128 + number) from None
    except SystemExit as stop:
        if stop.code not in STOPPED_CODES or isinstance(stop, StopTold):
            raise
        _print_stopped(console, logger)
        raise StopTold(stop.code) from None
    finally:
        if on_main_thread:
            signal.signal(signal.SIGTERM, before)


def _print_stopped(console: Console, logger: RunLogger | None) -> None:
    line = "stopped"
    if logger is not None and logger.resume_point is not None:
        with suppress(OSError, ValueError):
            line = f"stopped; the same command goes on from {logger.resume_point()}"
    console.print(line, soft_wrap=True)
