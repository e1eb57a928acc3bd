"""Processes of one machine that embed and train for a run which has no cluster to share.

On one machine Ray starts for longer than a small step computes, and starts actors in every step.
These processes start once, load what takes long while the run still prepares, and serve all steps.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar

from panoply.report.progress import RunError

SLOW_IMPORTS = ("transformers.modeling_utils", "scipy.stats", "pyarrow.parquet")
"""Modules of other packages that a backbone's process imports. They take 4 s of a core."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessKilled(RunError):
    """A process of the pool was killed."""


class LocalPool:
    """Processes that are started once, each with one thread, as an actor of one CPU has.

    They end with the block, and with their parent, however it ends.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._processes = set[BaseProcess]()
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([*SLOW_IMPORTS])
        ensure_running()  # one process loads what takes long, and the others will be its forks

    def __enter__(self) -> LocalPool:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes, in the midst of their work where the block was left by an error."""
        if self._processes:
            for process in self._processes:
                process.kill()
            self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yields what an importable function returns for each item, in their order.

        Raises:
            ProcessKilled: a process was killed. The pool has others when it is used next.
        """
        if not self._processes or not all(process.is_alive() for process in self._processes):
            self._start()
        try:
            yield from self._executor.map(function, items)
        except BrokenProcessPool:
            raise ProcessKilled(
                "a process of this run was killed, perhaps since memory ran out: fewer at a time "
                "need less (`--num-workers`)"
            ) from None

    def _start(self) -> None:
        before = set(active_children())
        self._executor = ProcessPoolExecutor(
            self.num_processes, self._context, initializer=_end_with_parent
        )
        for _ in range(self.num_processes):
            self._executor.submit(os.getpid)  # starts one process, as none is idle yet
        self._processes = set(active_children()) - before

    def map_made(
        self,
        make: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Any, ...],
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """Yields what `make(*arguments)`, called once in every process, returns for each item.

        A process calls `make` again only for other arguments.
        """
        return self.map(Made.by(make, arguments), items)


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, and not at Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


_made: dict[bytes, Callable[[Any], Any]] = {}
"""What `Made` made last in this process, by what it was made of."""


@dataclass(frozen=True, slots=True)
class Made:
    """Calls what each process makes for itself once, and keeps until it makes something else."""

    packed: bytes = field(repr=False)
    """What makes it and the arguments, which may hold keys, pickled."""

    @classmethod
    def by(cls, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> Made:
        """Returns a call of `make(*arguments)`."""
        return cls(pickle.dumps((make, arguments)))

    def __call__(self, item: Any) -> Any:
        """Returns what was made returns for an item."""
        if self.packed not in _made:
            _made.clear()  # before another is made, so that a process never holds two models
            make, arguments = pickle.loads(self.packed)
            _made[self.packed] = make(*arguments)
        return _made[self.packed](item)
