"""A client of `/v1/rewards` and `/v1/compare`, sync and async; what TRL and verl call.

    reward = Client("http://HOST:8000").trl_reward_func("armorm")
    trainer = GRPOTrainer(reward_funcs=[reward], ...)

    compute_score = AsyncClient("http://HOST:8000").verl_compute_score("armorm")  # in verl's file

A request is asked again where that can help until its time is over (`panoply.wire.attempts`). What
fails for good raises: a run without its reward model should stop, and not learn from made-up
numbers. A single score that failed is None for TRL, which leaves it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx2
from pydantic import JsonValue

from panoply.wire import compare, rewards
from panoply.wire.attempts import Attempts
from panoply.wire.request import Chat, Message, Score, ScoreAnswer, ScoreRequest
from panoply.wire.trainers import Text, trl_batch, verl_request, verl_score

Rewards: TypeAlias = list[float | None]
Pair: TypeAlias = tuple[Sequence[Message], str, str]
"""A prompt, and two responses to it."""


class _Settings:
    """What both clients are made from."""

    def __init__(self, url: str, *, timeout: float = 120.0, api_key: str | None = None) -> None:
        """Checks the settings; no connection is made.

        Args:
            url: of the server, without a path.
            timeout: seconds for a request with all of its attempts, where it names none itself.
            api_key: sent as a bearer token.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`url` must start with http:// or https://, got {url!r}")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be positive, got {timeout!r}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def attempts(self, request: ScoreRequest) -> Attempts[ScoreAnswer]:
        """Returns a request on its way. The server is told how long somebody still waits."""
        dialect, path = (compare, "compare") if request.compares else (rewards, "rewards")
        payload = dialect.payload_of(request)
        timeout = self.timeout if request.timeout is None else request.timeout
        return Attempts(
            f"{self.url}/v1/{path}",
            lambda left: payload | {"timeout": left},
            lambda answer: dialect.read_answer(answer, request),
            timeout,
        )


class Client(_Settings):
    """A client for plain functions. Threads may share it."""

    def __init__(self, url: str, *, timeout: float = 120.0, api_key: str | None = None) -> None:
        super().__init__(url, timeout=timeout, api_key=api_key)
        self._http = httpx2.Client(headers=self.headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Returns the scores of a request.

        Raises:
            RewardServerError: the server refused it, or its answer cannot be read.
            TimeoutError: there was no answer in time.
        """
        return self.attempts(request).post(self._http)

    def compare(self, model: str, pairs: Sequence[Pair]) -> list[Score]:
        """Returns the probability that the first response is better, or the error, of each pair.

        Raises:
            RewardServerError, TimeoutError: as `score`.
        """
        return _of_pairs(self.score(_comparison(model, pairs)))

    def trl_reward_func(
        self, model: str, *, label_column: str | None = None
    ) -> Callable[..., Rewards]:
        """Returns a reward function for TRL, which logs it under the model's name.

        Args:
            model: name of the reward model.
            label_column: column of the data set that function arms compare with.
        """

        def reward(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> Rewards:
            batch = trl_batch(model, prompts, completions, columns, label_column)
            return batch.rewards(self.score(batch.request), columns.get("log_metric"))

        reward.__name__ = model
        return reward

    def verl_compute_score(
        self, model: str, *, prompt_key: str = "prompt"
    ) -> Callable[..., dict[str, float]]:
        """Returns verl's `compute_score`.

        Args:
            model: name of the reward model.
            prompt_key: where the prompt stands in `extra_info`, as messages or as a user's text.
        """

        def compute_score(
            data_source: Any,
            solution_str: str,
            ground_truth: JsonValue,
            extra_info: Mapping[str, Any] | None = None,
            **_: Any,
        ) -> dict[str, float]:
            request = verl_request(model, solution_str, ground_truth, extra_info, prompt_key)
            return verl_score(self.score(request))

        return compute_score


class AsyncClient(_Settings):
    """A client for coroutines; connections are kept for the event loop that it was last used in."""

    def __init__(self, url: str, *, timeout: float = 120.0, api_key: str | None = None) -> None:
        super().__init__(url, timeout=timeout, api_key=api_key)
        self._http = httpx2.AsyncClient(headers=self.headers)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Returns the scores of a request.

        Raises:
            RewardServerError: the server refused it, or its answer cannot be read.
            TimeoutError: there was no answer in time.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):  # its connections died with the loop they were made in
            self._http = httpx2.AsyncClient(headers=self.headers)
        self._loop = loop
        return await self.attempts(request).post_async(self._http)

    async def compare(self, model: str, pairs: Sequence[Pair]) -> list[Score]:
        """As `Client.compare`."""
        return _of_pairs(await self.score(_comparison(model, pairs)))

    def trl_reward_func(
        self, model: str, *, label_column: str | None = None
    ) -> Callable[..., Awaitable[Rewards]]:
        """As `Client.trl_reward_func`, for trainers that await it beside others."""

        async def reward(
            prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
        ) -> Rewards:
            batch = trl_batch(model, prompts, completions, columns, label_column)
            return batch.rewards(await self.score(batch.request), columns.get("log_metric"))

        reward.__name__ = model
        return reward

    def verl_compute_score(
        self, model: str, *, prompt_key: str = "prompt"
    ) -> Callable[..., Awaitable[dict[str, float]]]:
        """As `Client.verl_compute_score`, for the reward loop that awaits it."""

        async def compute_score(
            data_source: Any,
            solution_str: str,
            ground_truth: JsonValue,
            extra_info: Mapping[str, Any] | None = None,
            **_: Any,
        ) -> dict[str, float]:
            request = verl_request(model, solution_str, ground_truth, extra_info, prompt_key)
            return verl_score(await self.score(request))

        return compute_score


def _comparison(model: str, pairs: Sequence[Pair]) -> ScoreRequest:
    items = tuple(Chat(tuple(prompt), (a, b)) for prompt, a, b in pairs)
    return ScoreRequest(items=items, models=(model,), compares=True)


def _of_pairs(answer: ScoreAnswer) -> list[Score]:
    return [score for item in answer.models[0].items for score in item]
