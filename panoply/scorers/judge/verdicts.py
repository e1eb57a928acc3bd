"""Verdicts of a judge: a question, its answer from the cache or the server, and what it says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from panoply.config.judge import Criterion, JudgeConfig
from panoply.scorers.judge.answer import JudgeAnswer
from panoply.scorers.judge.cache import AnswerCache
from panoply.scorers.judge.client import JudgeClient, JudgeError
from panoply.scorers.judge.parse import NoVerdict
from panoply.scorers.judge.prompts import JudgePrompt, Question
from panoply.wire.request import Chat, JudgeVerdict

QUESTIONS_AT_ONCE = 256
"""Questions that are written at the same time: each holds its texts."""
LOG = logging.getLogger("ray.serve")
"""Logger of the replica."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Verdict, and what it cost now."""

    verdict: JudgeVerdict
    numbers: tuple[float, ...]
    """Values of the verdict, in their order (`panoply.scorers.judge.parse`)."""
    answer: JudgeAnswer
    is_cached: bool
    cost: float | None
    """Cost of the answer; None where it is not known."""


class Judge:
    """Asks for verdicts."""

    def __init__(self, config: JudgeConfig, prompt: JudgePrompt, client: JudgeClient) -> None:
        self.config, self.prompt, self.client = config, prompt, client
        self.cache = AnswerCache() if config.cache else None
        self.num_unread = 0
        """Answers without a verdict."""
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    async def judge(
        self,
        chat: Chat,
        shown: tuple[int, ...],
        criteria: Sequence[Criterion],
        vote: int,
        ends: float,
    ) -> Judged | JudgeError:
        """Returns a verdict, or why there is none.

        Args:
            chat: the prompt, its responses and the right answer.
            shown: places of the responses that are shown, in this order.
            criteria: criteria that are asked for.
            vote: number of the vote, which decides the seed.
            ends: time of `time.monotonic` after which nobody waits.
        """
        async with self._questions:
            try:
                responses = [chat.responses[place] for place in shown]
                question = self.prompt.ask(chat.prompt, responses, chat.label, criteria)
            except ValueError as error:
                return JudgeError(str(error), False)
            try:
                return await self._judge(question, shown, criteria, vote, ends)
            except JudgeError as error:
                return error
            except NoVerdict as error:
                self.num_unread += 1
                return JudgeError(f"the judge's answer {error}", False)

    async def _judge(
        self,
        question: Question,
        shown: tuple[int, ...],
        criteria: Sequence[Criterion],
        vote: int,
        ends: float,
    ) -> Judged:
        """Returns a verdict.

        Raises:
            JudgeError: there is no answer.
            NoVerdict: there is an answer, without a verdict; it is not kept.
        """
        seed = self.config.sampling.seed + vote
        reader = self.prompt.reader
        key = self.client.key(question, seed)
        answer = await self._kept(key)
        is_cached = answer is not None
        if answer is None:
            answer = await self.client.ask(question, seed, ends)
            reader.read(answer, len(shown))
            answer = await self._keep(key, answer)
        numbers = reader.read(answer, len(shown))
        names = reader.names(criteria, len(shown))
        values = dict(zip(names, numbers, strict=True))
        return Judged(
            verdict=JudgeVerdict(answer.text, values, shown),
            numbers=numbers,
            answer=answer,
            is_cached=is_cached,
            cost=0.0 if is_cached else self.client.cost(answer),
        )

    async def _kept(self, key: str) -> JudgeAnswer | None:
        """Returns the answer of the cache; None where there is none, or it cannot be read."""
        if self.cache is None:
            return None
        try:
            answer = await asyncio.to_thread(self.cache.read, key)
        except OSError as error:
            LOG.warning("the cache of judges' answers cannot be read: %s", error)
            return None
        self.client.spending.cached += answer is not None
        return answer

    async def _keep(self, key: str, answer: JudgeAnswer) -> JudgeAnswer:
        """Returns the answer that the cache keeps; the same one where it cannot be written."""
        if self.cache is None:
            return answer
        try:
            return await asyncio.to_thread(self.cache.keep, key, answer)
        except OSError as error:
            LOG.warning("the cache of judges' answers cannot be written: %s", error)
            return answer
