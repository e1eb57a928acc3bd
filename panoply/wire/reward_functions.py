"""What trainers call: objects that ask a client, and that go to other processes as they are.

Trainers send reward functions to processes of their own (TRL's AsyncGRPOTrainer, verl's manager
`remote`, pools of workers), so these are objects of importable classes and no closures. A copy
makes connections of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from panoply.wire.trainers import Text, trl_batch, verl_request, verl_score

if TYPE_CHECKING:
    from panoply.wire.client import AsyncClient, Client

Rewards: TypeAlias = list[float | None]


class _Coroutine:
    """Marks objects with an async `__call__` as coroutine functions.

    verl asks `inspect.iscoroutinefunction` of the object itself, which takes for a function what
    has a function's attributes. Its signature is that of the call, without `self`.
    """

    __code__: ClassVar[CodeType]
    __defaults__: ClassVar[tuple[Any, ...] | None]
    __kwdefaults__: ClassVar[dict[str, Any] | None]
    __signature__: inspect.Signature

    def __init_subclass__(cls) -> None:
        call: Any = inspect.getattr_static(cls, "__call__")
        cls.__code__, cls.__defaults__ = call.__code__, call.__defaults__
        cls.__kwdefaults__ = call.__kwdefaults__


@dataclass(eq=False)
class TrlReward:
    """A reward function for TRL and ms-swift, which log it under the model's name."""

    client: Client
    model: str
    label_column: str | None = None

    def __post_init__(self) -> None:
        self.__name__ = self.model

    def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        **columns: Any,
    ) -> Rewards:
        """Returns a score for each completion, None where there is none.

        Raises:
            RewardServerError, TimeoutError: as `Client.score`.
            KeyError, TypeError: as `trl_batch`.
        """
        batch = trl_batch(self.model, prompts, completions, columns, self.label_column)
        return batch.rewards(self.client.score(batch.request), columns.get("log_metric"))


@dataclass(eq=False)
class AsyncTrlReward(_Coroutine):
    """As `TrlReward`, for trainers that await it beside others."""

    client: AsyncClient
    model: str
    label_column: str | None = None

    def __post_init__(self) -> None:
        self.__name__ = self.model
        self.__signature__ = inspect.signature(self.__call__)

    async def __call__(
        self,
        completions: Sequence[Text],
        prompts: Sequence[Text] | None = None,
        **columns: Any,
    ) -> Rewards:
        """As `TrlReward.__call__`."""
        batch = trl_batch(self.model, prompts, completions, columns, self.label_column)
        return batch.rewards(await self.client.score(batch.request), columns.get("log_metric"))


@dataclass(eq=False)
class VerlScore:
    """verl's `compute_score`."""

    client: Client
    model: str
    prompt_key: str | None = None

    def __post_init__(self) -> None:
        self.__name__ = self.model

    def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """Returns the score of a response, and what verl logs beside it.

        Raises:
            RewardServerError, TimeoutError: as `Client.score`.
            KeyError, TypeError, ValueError: as `verl_request`.
            RuntimeError: there is no score.
        """
        request = verl_request(self.model, solution_str, ground_truth, extra_info, self.prompt_key)
        return verl_score(self.client.score(request), request)


@dataclass(eq=False)
class AsyncVerlScore(_Coroutine):
    """As `VerlScore`, for the reward loop that awaits it."""

    client: AsyncClient
    model: str
    prompt_key: str | None = None

    def __post_init__(self) -> None:
        self.__name__ = self.model
        self.__signature__ = inspect.signature(self.__call__)

    async def __call__(
        self,
        data_source: Any,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        """As `VerlScore.__call__`."""
        request = verl_request(self.model, solution_str, ground_truth, extra_info, self.prompt_key)
        return verl_score(await self.client.score(request), request)
