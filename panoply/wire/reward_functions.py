"""Base classes of the functions that trainers call.

Trainers send reward functions to processes of their own (TRL's AsyncGRPOTrainer, verl's manager
`remote`, pools of workers), so these are objects of importable classes and no closures. A copy
makes connections of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import CodeType
from typing import Any, ClassVar


@dataclass(eq=False)
class RewardFunction:
    """Function that asks a client for the scores of one model, and that is logged by its name."""

    client: Any
    """A client, or an async one, as the subclass says."""
    model: str

    def __post_init__(self) -> None:
        self.__name__ = self.model


@dataclass(eq=False)
class CoroutineFunction(RewardFunction):
    """Reward function with an async `__call__`, which trainers take for a coroutine function.

    verl asks `inspect.iscoroutinefunction` of the object itself, which takes for a function what
    has a function's attributes. Its signature is that of the call, without `self`.
    """

    __code__: ClassVar[CodeType]
    __defaults__: ClassVar[tuple[Any, ...] | None]
    __kwdefaults__: ClassVar[dict[str, Any] | None]

    def __init_subclass__(cls) -> None:
        call: Any = inspect.getattr_static(cls, "__call__")
        cls.__code__, cls.__defaults__ = call.__code__, call.__defaults__
        cls.__kwdefaults__ = call.__kwdefaults__

    def __post_init__(self) -> None:
        RewardFunction.__post_init__(self)
        function: Any = self
        self.__signature__ = inspect.signature(function.__call__)
