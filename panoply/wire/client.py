"""A client of `/v1/rewards`, sync and async, and the functions that TRL and verl call.

    reward = Client("http://HOST:8000").trl_reward_func("armorm")
    trainer = GRPOTrainer(reward_funcs=[reward], ...)

    compute_score = AsyncClient("http://HOST:8000").verl_compute_score("armorm")  # in verl's file

A request is asked again where that can help (429 and 503, by the server's Retry-After, and a broken
connection) until its time is over; scoring twice does no harm. What fails for good raises: a run
without its reward model should stop, and not learn from made-up numbers. A single score that failed
is None for TRL, which leaves it out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx2
from pydantic import JsonValue

from panoply.wire.request import ScoreAnswer, ScoreRequest
from panoply.wire.rewards import payload_of, read_answer
from panoply.wire.trainers import Text, trl_batch, verl_request, verl_score

Rewards: TypeAlias = list[float | None]

RETRIED = (429, 503)
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds. Pauses double, and a random half keeps clients from coming back all at once."""


class RewardServerError(RuntimeError):
    """The server refused a request, or its answer cannot be read."""


class _Attempts:
    """One request, asked until its time is over."""

    def __init__(self, url: str, request: ScoreRequest, timeout: float) -> None:
        self.url, self.request = url, request
        self.timeout = timeout if request.timeout is None else request.timeout
        self.ends = time.monotonic() + self.timeout
        self.num_failed = 0

    def next(self) -> dict[str, Any]:
        """Returns what to post. The server is told how long somebody still waits."""
        left = max(self.ends - time.monotonic(), 1e-3)
        return {"json": payload_of(self.request) | {"timeout": left}, "timeout": left}

    def answer(self, response: httpx2.Response) -> ScoreAnswer | float:
        """Returns the answer, or the seconds to wait before asking again.

        Raises:
            RewardServerError: asking again would not help.
            TimeoutError: the time would be over.
        """
        told = f"HTTP {response.status_code}: {response.text[:500]}"
        if response.status_code in RETRIED:
            # The header may be a date too; servers that ask to wait for a queue give seconds.
            asked = response.headers.get("retry-after", "")
            return self.pause(told, float(asked) if asked.isdecimal() else None)
        if response.status_code != 200:
            raise RewardServerError(f"{self.url} refused the request with {told}")
        try:
            return read_answer(response.json(), self.request)
        except ValueError as error:
            raise RewardServerError(f"cannot read what {self.url} answered: {error}") from error

    def pause(self, why: str, asked: float | None = None) -> float:
        """Counts a failure and returns the seconds to wait, by the server's word or by count.

        Raises:
            TimeoutError: the time would be over.
        """
        self.num_failed += 1
        longest = min(FIRST_PAUSE * 2 ** (self.num_failed - 1), LONGEST_PAUSE)
        pause = longest * random.uniform(0.5, 1) if asked is None else asked
        if time.monotonic() + pause >= self.ends:
            raise TimeoutError(
                f"{self.url} gave no answer within {self.timeout:g} s; attempt {self.num_failed} "
                f"ended with {why}, and the next would be {pause:.1f} s later"
            )
        return pause


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
        self.url = f"{url.rstrip('/')}/v1/rewards"
        self.timeout = timeout
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}


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
        attempts = _Attempts(self.url, request, self.timeout)
        while True:
            try:
                found = attempts.answer(self._http.post(self.url, **attempts.next()))
            except httpx2.TransportError as error:
                found = attempts.pause(repr(error))
            if isinstance(found, ScoreAnswer):
                return found
            time.sleep(found)

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
        attempts = _Attempts(self.url, request, self.timeout)
        while True:
            try:
                found = attempts.answer(await self._http.post(self.url, **attempts.next()))
            except httpx2.TransportError as error:
                found = attempts.pause(repr(error))
            if isinstance(found, ScoreAnswer):
                return found
            await asyncio.sleep(found)

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
