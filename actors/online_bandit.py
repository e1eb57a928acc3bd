"""The bandit of a server: one process that decides, learns and writes the log for all replicas.

Its whole state follows from its log, so it may die at any moment: a decision is in the log before
it is answered, and whoever asks again gets the same one. What is asked while a record is written
shares the next record.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias, TypeVar

from ray.exceptions import RayActorError

from actors.internal_error import LOG, internal_error
from panoply.laser.online import AskedPrompt, OnlineBandit, OnlineStatus
from panoply.lease import LeaseLost
from panoply.scorers.bandit.opening import log_uri, read_bandit
from panoply.wire.feedback import Outcome, OutcomeAnswer
from panoply.wire.request import ArmChoice, RequestError

T = TypeVar("T")
Choices: TypeAlias = "Future[list[ArmChoice]]"
OUTCOMES_AT_ONCE = 64
"""Outcomes of a record, some tenths of a second of work: then it is the turn of decisions."""
RETRY_SECONDS = 0.2
"""Pause before a bandit that died is asked again."""


class OnlineBanditActor:
    """A bandit that any number of replicas ask; its log is taken over with the first request."""

    def __init__(self, name: str, file: str, num_features: int) -> None:
        """Reads the settings; the log is made, or found with the same ones.

        Args:
            name: of the scorer, for errors.
            file: of settings.
            num_features: numbers in a context.

        Raises:
            ValueError, OSError: a setting is wrong, or the log is another bandit's.
        """
        path = Path(file).expanduser()
        config = read_bandit(path)
        self.name = name
        self.bandit = OnlineBandit(
            config.selector,
            config.names,
            num_features,
            log_uri(path, config),
            context=asdict(config.context),
            reward_range=config.reward_range,
            hold_seconds=config.hold_seconds,
            clock=time.time,
        )
        self.writer = ThreadPoolExecutor(1, "log")
        self.waiting: deque[tuple[Sequence[AskedPrompt], Choices]] = deque()
        """Prompts that need a decision, and where it goes."""

    async def decide(self, prompts: Sequence[AskedPrompt]) -> list[ArmChoice] | RequestError:
        """Returns the arm of each prompt, which is in the log; or why there is none."""
        choices: Choices = Future()
        self.waiting.append((prompts, choices))
        self.writer.submit(self._decide_waiting)
        return await self._answer(asyncio.wrap_future(choices))

    async def learn(
        self, caller: str, outcomes: Sequence[Outcome]
    ) -> list[OutcomeAnswer] | RequestError:
        """Returns what becomes of outcomes, those that are counted in the log; or why nothing."""
        answers: list[OutcomeAnswer] = []
        for first in range(0, len(outcomes), OUTCOMES_AT_ONCE):
            some = outcomes[first : first + OUTCOMES_AT_ONCE]
            learned = await self._answer(self._in_turn(self.bandit.learn, caller, some))
            if isinstance(learned, RequestError):
                return learned
            answers += learned
        return answers

    async def status(self) -> OnlineStatus | RequestError:
        """Returns the progress of the bandit."""
        return await self._answer(self._in_turn(self.bandit.status))

    async def _in_turn(self, call: Callable[..., T], *args: object) -> T:
        """Returns what a call gives, when it is its turn."""
        return await asyncio.get_running_loop().run_in_executor(self.writer, call, *args)

    def _decide_waiting(self) -> None:
        """Decides on all prompts that wait, in one record."""
        calls: list[tuple[Sequence[AskedPrompt], Choices]] = []
        while self.waiting:
            calls.append(self.waiting.popleft())
        if not calls:  # an earlier record has them
            return
        prompts: list[AskedPrompt] = []
        for call, _ in calls:
            prompts += call
        try:
            choices = self.bandit.decide(prompts)
        except Exception as error:
            for _, future in calls:
                _settle(future, error)
            return
        for call, future in calls:
            _settle(future, choices[: len(call)])
            choices = choices[len(call) :]

    async def _answer(self, answer: Awaitable[T]) -> T | RequestError:
        """Returns an answer, or its error as a value: exceptions change between processes."""
        try:
            return await answer
        except LeaseLost as error:
            LOG.error("%s", error)
            why = f"the log of {self.name!r} is written by another server, which took it over"
            return RequestError(why, 503)
        except (OSError, ValueError) as error:  # no text of a client is in what a log says
            LOG.error("the log of %r: %s", self.name, error)
            why = f"the log of {self.name!r} cannot be read or written: the server's log says why"
            return RequestError(why, 503)
        except Exception as error:
            return internal_error(f"the bandit of {self.name!r}", error)


class RemoteBandit:
    """The bandit as replicas ask it: one that died is asked again, until the request's time ends.

    Args:
        decide: sends prompts.
        learn: sends outcomes.
    """

    def __init__(
        self,
        decide: Callable[[Sequence[AskedPrompt]], Awaitable[list[ArmChoice] | RequestError]],
        learn: Callable[[str, Sequence[Outcome]], Awaitable[list[OutcomeAnswer] | RequestError]],
    ) -> None:
        self._decide, self._learn = decide, learn

    async def decide(self, prompts: Sequence[AskedPrompt]) -> Sequence[ArmChoice]:
        """Returns the arm of each prompt, which is in the log.

        Raises:
            RequestError: nothing could be written.
        """
        return await _until_answered(lambda: self._decide(prompts))

    async def learn(self, caller: str, outcomes: Sequence[Outcome]) -> Sequence[OutcomeAnswer]:
        """Returns what becomes of outcomes; those that are counted are in the log.

        Raises:
            RequestError: nothing could be written.
        """
        return await _until_answered(lambda: self._learn(caller, outcomes))


async def _until_answered(ask: Callable[[], Awaitable[T | RequestError]]) -> T:
    """Returns an answer; Serve starts a bandit that died again, which goes on from its log."""
    while True:
        try:
            answer = await ask()
        except RayActorError:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if isinstance(answer, RequestError):
            raise answer
        return answer


def _settle(future: Future[T], result: T | Exception) -> None:
    """Sets a result, unless whoever asked is gone."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
