"""The token budget of a forward: measured once, halved where memory runs out.

Results never depend on it: it decides which trees run side by side, and trees do not see each
other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

from panoply.model.decoder import Decoder
from panoply.model.forward import forward_trees
from panoply.model.tree import Branch, TokenTree

T = TypeVar("T")

CPU_WIDTHS = (256, 512, 1024, 2048)
GPU_WIDTHS = (2048, 4096, 8192, 16384, 32768)
CLOSE_TO_BEST = 0.95
"""Share of the best speed that the narrowest width has to reach to be taken: it needs least memory.
"""
TIMED_LAYERS = 2
LEAST = 64
"""Smallest budget that is tried before an error of memory is raised."""


class _StopForward(Exception):
    """Ends a forward after the layers that are timed."""


def calibrate(decoder: Decoder) -> int:
    """Returns the token budget of the fastest rows, from a forward of the first layers.

    Layers are alike, so `TIMED_LAYERS` of them show which width suits the caches (CPU) or fills the
    device (GPU).
    """
    speeds: dict[int, float] = {}

    def stop(*_: Any) -> None:
        raise _StopForward

    last = min(TIMED_LAYERS, len(decoder.layers)) - 1
    handle = decoder.layers[last].register_forward_hook(stop)
    try:
        _speed(decoder, LEAST)  # warm
        for width in CPU_WIDTHS if decoder.device.type == "cpu" else GPU_WIDTHS:
            speeds[width] = _speed(decoder, width)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    finally:
        handle.remove()
    best = max(speeds.values(), default=0.0)
    return min((w for w in speeds if speeds[w] >= CLOSE_TO_BEST * best), default=LEAST)


@torch.no_grad()
def _speed(decoder: Decoder, width: int) -> float:
    """Returns tokens per second of a row of trees of 64 tokens, the better of two times."""
    branches = (Branch((1,) * 16, 0, 16), Branch((2,) * 16, 0, 16))
    trees = [TokenTree((3,) * 32, branches, gate=0)] * (width // 64)
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with suppress(_StopForward):
            forward_trees(decoder, trees)
        if decoder.device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, width / (time.perf_counter() - start))
    return best


def within_memory(run: Callable[[int], T], budget: int) -> tuple[T, int]:
    """Runs `run(budget)`, with half the budget each time that memory runs out.

    Returns:
        The result of `run`, and the budget it ran with, to begin with next time.

    Raises:
        torch.OutOfMemoryError: it does not fit with `LEAST` tokens either.
    """
    while True:
        try:
            return run(budget), budget
        except RuntimeError as error:
            if not _is_out_of_memory(error) or budget // 2 < LEAST:
                raise
        # Outside of the handler: the traceback of the error keeps the tensors of its frames.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory with a token budget of {budget}: retrying with {budget // 2}; set "
            f"`backbone.token_budget` to {budget // 2} to start there",
            stacklevel=2,
        )
        budget //= 2


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether memory ran out; a CPU's allocator raises a plain RuntimeError for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
