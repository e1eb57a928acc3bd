"""Client of our own endpoints, sync and async, with reward functions for trainers.

    reward = Client("http://HOST:8000").trl_reward_func("armorm")
    trainer = GRPOTrainer(reward_funcs=[reward], ...)

    compute_score = AsyncClient("http://HOST:8000").verl_compute_score("armorm")  # in verl's file

A request is asked again where that can help until its time is over (`panoply.wire.retry`). What
fails for good raises: a run without its reward model should stop, and not learn from made-up
numbers. A single score that failed is None for TRL, which leaves it out.

Clients and their functions can be pickled, copied and sent to other processes; a copy connects by
itself. The pickle holds the API key, and `repr` does not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx2
from pydantic import SecretStr

from panoply.wire import compare, rewards
from panoply.wire.feedback import (
    Outcome,
    OutcomeAnswer,
    feedback_payload,
    read_feedback_answer,
)
from panoply.wire.request import Chat, Message, Score, ScoreAnswer, ScoreRequest
from panoply.wire.retry import RetryingRequest
from panoply.wire.trl import AsyncTrlReward, TrlReward
from panoply.wire.verl import AsyncVerlScore, VerlScore

Pair: TypeAlias = tuple[Sequence[Message], str, str]
"""A prompt, and two responses to it."""


class _Settings:
    """Settings of both clients. A copy in another process has them, and no connection."""

    _http: dict[Any, Any]

    def __init__(self, url: str, *, timeout: float = 120.0, api_key: str | None = None) -> None:
        """Checks the settings; no connection is made.

        Args:
            url: address of the server, without a path.
            timeout: seconds for a request with all of its attempts, where it names none itself.
            api_key: key that is sent as a bearer token.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`url` must start with http:// or https://, got {url!r}")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be positive, got {timeout!r}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.api_key = None if api_key is None else SecretStr(api_key)
        self._http = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, timeout={self.timeout!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_http": {}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        key = self.api_key.get_secret_value() if self.api_key else ""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def retrying(self, request: ScoreRequest) -> RetryingRequest[ScoreAnswer]:
        """Returns a request that tells the server at each attempt how many seconds are left."""
        dialect, path = (compare, "compare") if request.compares else (rewards, "rewards")
        payload = dialect.payload_of(request)
        timeout = self.timeout if request.timeout is None else request.timeout
        return RetryingRequest(
            f"{self.url}/v1/{path}",
            lambda left: payload | {"timeout": left},
            lambda answer: dialect.read_answer(answer, request),
            timeout,
        )

    def telling(
        self, model: str, outcomes: Sequence[Outcome]
    ) -> RetryingRequest[list[OutcomeAnswer]]:
        """Returns a request with outcomes, which count once however often it is sent."""
        return RetryingRequest(
            f"{self.url}/v1/feedback",
            lambda _: feedback_payload(model, outcomes),
            lambda answer: read_feedback_answer(answer, len(outcomes)),
            self.timeout,
        )


class Client(_Settings):
    """Client for plain functions. Threads may share it, and each process connects by itself."""

    _http: dict[int, httpx2.Client]
    """Connections by the id of the process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if http := self._http.pop(os.getpid(), None):
            http.close()

    def _connections(self) -> httpx2.Client:
        """Returns this process's own: a fork must not write into its parent's sockets."""
        process = os.getpid()
        http = self._http.get(process)
        return http or self._http.setdefault(process, httpx2.Client(headers=self.headers))

    def score(self, request: ScoreRequest) -> ScoreAnswer:
        """Returns the scores of a request.

        Raises:
            RewardServerError: the server refused it, or its answer cannot be read.
            TimeoutError: there was no answer in time.
        """
        return self.retrying(request).post(self._connections())

    def compare(self, model: str, pairs: Sequence[Pair]) -> list[Score]:
        """Returns the probability that the first response is better, or the error, of each pair.

        Raises:
            RewardServerError, TimeoutError: as `score`.
        """
        return _of_pairs(self.score(_comparison(model, pairs)))

    def feedback(self, model: str, outcomes: Sequence[Outcome]) -> list[OutcomeAnswer]:
        """Returns what became of outcomes of a bandit's decisions.

        Args:
            model: name of the bandit.
            outcomes: what came of its decisions, which stand in `Score.details.choice`.

        Raises:
            RewardServerError, TimeoutError: as `score`.
        """
        return self.telling(model, outcomes).post(self._connections())

    def trl_reward_func(self, model: str, *, label_column: str | None = None) -> TrlReward:
        """Returns a reward function for TRL, which logs it under the model's name, and ms-swift.

        Args:
            model: name of the reward model.
            label_column: column of the data set that functions compare with.
        """
        return TrlReward(self, model, label_column)

    def verl_compute_score(self, model: str, *, prompt_key: str | None = None) -> VerlScore:
        """Returns verl's `compute_score`.

        Args:
            model: name of the reward model.
            prompt_key: key of the prompt in `extra_info`, as messages or as a user's text; None:
                "prompt", and a function that reads none does without.
        """
        return VerlScore(self, model, prompt_key)


class AsyncClient(_Settings):
    """Client for coroutines. Event loops may share it, and each of them connects by itself."""

    _http: dict[asyncio.AbstractEventLoop, httpx2.AsyncClient]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if http := self._http.pop(asyncio.get_running_loop(), None):
            await http.aclose()

    def _connections(self) -> httpx2.AsyncClient:
        """Returns the running event loop's own: connections die with the loop they were made in."""
        loop = asyncio.get_running_loop()
        if loop not in self._http:
            for other in self._http.copy():  # threads run loops of their own beside this one
                if other.is_closed():
                    self._http.pop(other, None)
            self._http[loop] = httpx2.AsyncClient(headers=self.headers)
        return self._http[loop]

    async def score(self, request: ScoreRequest) -> ScoreAnswer:
        """As `Client.score`."""
        return await self.retrying(request).post_async(self._connections())

    async def compare(self, model: str, pairs: Sequence[Pair]) -> list[Score]:
        """As `Client.compare`."""
        return _of_pairs(await self.score(_comparison(model, pairs)))

    async def feedback(self, model: str, outcomes: Sequence[Outcome]) -> list[OutcomeAnswer]:
        """As `Client.feedback`."""
        return await self.telling(model, outcomes).post_async(self._connections())

    def trl_reward_func(self, model: str, *, label_column: str | None = None) -> AsyncTrlReward:
        """As `Client.trl_reward_func`, for trainers that await it beside others."""
        return AsyncTrlReward(self, model, label_column)

    def verl_compute_score(self, model: str, *, prompt_key: str | None = None) -> AsyncVerlScore:
        """As `Client.verl_compute_score`, for the reward loop that awaits it."""
        return AsyncVerlScore(self, model, prompt_key)


def _comparison(model: str, pairs: Sequence[Pair]) -> ScoreRequest:
    items = tuple(Chat(tuple(prompt), (a, b)) for prompt, a, b in pairs)
    return ScoreRequest(items=items, models=(model,), compares=True)


def _of_pairs(answer: ScoreAnswer) -> list[Score]:
    return list(chain.from_iterable(answer.models[0].items))
