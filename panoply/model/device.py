"""The device that models run on, and a choice of it and of the precision for one load."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Placement:
    """Names where and how precisely a model computes; None leaves the choice to the machine."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None


_PLACEMENT: ContextVar[Placement] = ContextVar("placement", default=Placement())  # noqa: B039 (frozen)


def best_device() -> torch.device:
    """Returns the device that is chosen, else the first CUDA device, else the CPU."""
    if (chosen := _PLACEMENT.get().device) is not None:
        return chosen
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_dtype() -> torch.dtype | None:
    """Returns the precision that is chosen for a load; None: by the model."""
    return _PLACEMENT.get().dtype


@contextmanager
def placed(placement: Placement) -> Generator[None]:
    """Loads models by a choice of device and precision while the context is open."""
    token = _PLACEMENT.set(placement)
    try:
        yield
    finally:
        _PLACEMENT.reset(token)
