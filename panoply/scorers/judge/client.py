"""Questions to a judge's server: through the `openai` client, within all of the server's limits.

What a server answers is checked; its words are in no error and no log, since they may repeat the
texts that were judged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from panoply.config.judge import JsonAnswer, JudgeConfig
from panoply.scorers.endpoint import AT_FAULT, BEHIND
from panoply.scorers.judge.answer import JudgeAnswer, read_completion
from panoply.scorers.judge.limited import PATH, LimitedHttp, Pace
from panoply.scorers.judge.prompts import JudgePrompt, Question
from panoply.secret import authorization, without_secrets
from panoply.wire.bounded import UNCOMPRESSED
from panoply.wire.breaker import CircuitBreaker

VERSION = 1
"""Version of what the keys of the cache are made of."""
RETRIES = 50
"""Attempts of the `openai` client, whose pauses grow to 8 s: time is over before."""
TOKEN_CHARACTERS = 4
"""Characters of a token, as long as no server told how many it read."""
REFUSES_FORM = (400, 422, 501)
"""Statuses by which servers refuse a `response_format` that they do not have."""
LOG = logging.getLogger("ray.serve")
"""Logger of the replica."""


class JudgeError(Exception):
    """Answer that a judge did not give.

    Args:
        message: without words of a text or of the server.
        transient: whether asking again may help.
    """

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message, transient)
        self.message, self.transient = message, transient


@dataclass(slots=True)
class Spending:
    """Answers, tokens and costs of a judge since it was started."""

    calls: int = 0
    """Answers of the server."""
    cached: int = 0
    """Answers of the cache."""
    input_tokens: int = 0
    """Tokens read, estimated where the server does not tell."""
    output_tokens: int = 0
    """Tokens written, as far as the server tells."""
    cost: float = 0.0
    """Costs of these tokens by the prices of the settings."""


class JudgeClient:
    """Client of a judge's server. It belongs to one event loop."""

    def __init__(
        self, config: JudgeConfig, prompt: JudgePrompt, *, api_key: str = "", replicas: int = 1
    ) -> None:
        """Makes no connection.

        Args:
            config: the judge's settings.
            prompt: says what a request holds about the answer's form.
            api_key: key of the server; empty: it asks for none.
            replicas: processes that share the limits.
        """
        self.config, self.prompt, self.server = config, prompt, config.server
        self.spending = Spending()
        self.breaker = CircuitBreaker()
        self.url = self.server.address.url
        self._place = without_secrets(self.url)
        concurrency = max(1, self.server.concurrency // replicas)
        self._slots = asyncio.Semaphore(concurrency)
        self._tokens = Pace(self.server.tokens_per_second / replicas)
        self._max_cost = self.server.max_cost / replicas
        self._falls_back = isinstance(config.answer, JsonAnswer) and (
            config.answer.structured == "auto"
        )
        self._structured = self._first_structured()
        requests = Pace(self.server.requests_per_second / replicas)
        address = httpx2.URL(self.url)
        # Variables of the environment, such as OPENAI_API_KEY, are meant for OpenAI alone.
        absent = openai.Omit()
        self._headers = {
            "Authorization": authorization(api_key) if api_key else absent,
            "OpenAI-Organization": absent,
            "OpenAI-Project": absent,
            **UNCOMPRESSED,
        }
        self._openai = openai.AsyncOpenAI(
            api_key=api_key or "none",
            base_url=address.copy_with(query=None),
            default_query=dict(address.params),
            max_retries=RETRIES,
            http_client=LimitedHttp(self.breaker, requests, concurrency),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._openai.close()

    def key(self, question: Question, seed: int) -> str:
        """Returns the hash of all that decides an answer; the random mark does not."""
        body = self._body(question, seed, self._first_structured(), mark="")
        text = json.dumps([VERSION, self.url, body], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

    async def ask(self, question: Question, seed: int, ends: float) -> JudgeAnswer:
        """Returns the server's answer.

        Args:
            question: to the judge.
            seed: of the server's sampling.
            ends: time of `time.monotonic` after which nobody waits.

        Raises:
            JudgeError: there is no answer.
        """
        num_estimated = len(question.text) // TOKEN_CHARACTERS
        num_used = 0
        seconds = ends - time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self._tokens.take(num_estimated))
                async with self._slots:
                    if self._max_cost and self.spending.cost >= self._max_cost:
                        raise JudgeError("the judge has spent its `server.max_cost`", False)
                    answer = await self._answer(question, seed, ends)
            num_used = self._spend(answer, num_estimated)
            return answer
        except TimeoutError as error:
            late = f"gave no answer within {round(max(seconds, 0.0), 1):g} s"
            LOG.warning("%s %s", self._place, late)
            raise JudgeError(f"{BEHIND} {late}", True) from error
        finally:
            self._tokens.charge(num_used - num_estimated)

    def cost(self, answer: JudgeAnswer) -> float | None:
        """Returns the cost of an answer; None where there are no prices or no tokens were told."""
        server = self.server
        if not server.input_price and not server.output_price:
            return None
        if answer.input_tokens is None or answer.output_tokens is None:
            return None
        return self._price(answer.input_tokens, answer.output_tokens)

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        server = self.server
        return (input_tokens * server.input_price + output_tokens * server.output_price) / 1e6

    def _spend(self, answer: JudgeAnswer, num_estimated: int) -> int:
        """Counts an answer, and returns its tokens."""
        read = num_estimated if answer.input_tokens is None else answer.input_tokens
        written = answer.output_tokens or 0
        self.spending.calls += 1
        self.spending.input_tokens += read
        self.spending.output_tokens += written
        self.spending.cost += self._price(read, written)
        return read + written

    async def _answer(self, question: Question, seed: int, ends: float) -> JudgeAnswer:
        """Returns an answer, asked for without structured output where the server has none.

        Raises:
            JudgeError: there is no answer.
        """
        structured = self._structured
        try:
            try:
                return await self._post(question, seed, ends, structured)
            except openai.APIStatusError as error:
                is_form = error.status_code in REFUSES_FORM and structured != "none"
                if not (self._falls_back and is_form):
                    raise
            answer = await self._post(question, seed, ends, "none")
            self._structured = "none"  # the first request was refused for its form alone
            return answer
        except openai.APIStatusError as error:
            LOG.warning("%s answered HTTP %d", self._place, error.status_code)
            why = f"{BEHIND} answered HTTP {error.status_code}; the server's log names it"
            raise JudgeError(why, error.status_code not in AT_FAULT) from error
        except openai.APIConnectionError as error:
            LOG.warning("%s cannot be reached", self._place)
            raise JudgeError(f"{BEHIND} cannot be reached", True) from error

    async def _post(
        self, question: Question, seed: int, ends: float, structured: str
    ) -> JudgeAnswer:
        """Returns the answer to one request, and those that repeat it.

        Raises:
            JudgeError: the circuit is open, or what came is no chat completion.
            openai.APIError: the server refused the request, or cannot be reached.
        """
        if not self.breaker.admits():
            raise JudgeError(
                f"{BEHIND} failed {self.breaker.num_failed} times in a row, and is tried again in "
                f"{self.breaker.seconds_left:.0f} s",
                True,
            )
        begun = time.monotonic()
        options: Any = {"timeout": max(1e-3, ends - begun), "headers": self._headers}
        try:
            response = await self._openai.post(
                PATH,
                cast_to=httpx2.Response,
                body=self._body(question, seed, structured, question.draw_mark()),
                options=options,
            )
            answer = read_completion(response.content)
        except ValueError as error:
            self.breaker.failed(time.monotonic() - begun)
            LOG.warning("%s gave no chat completion", self._place)
            raise JudgeError(f"{BEHIND} gave no answer of its protocol", True) from error
        finally:
            self.breaker.abandoned()  # where it was a probe, and had no end
        self.breaker.succeeded()
        return answer

    def _first_structured(self) -> str:
        """Returns the `response_format` that is asked for until the server refuses it."""
        answer = self.config.answer
        if not isinstance(answer, JsonAnswer):
            return "none"
        return "json_schema" if answer.structured == "auto" else answer.structured

    def _body(self, question: Question, seed: int, structured: str, mark: str) -> dict[str, Any]:
        """Returns the body of a request; a key that the settings set to null is left out."""
        sampling = self.config.sampling
        body: dict[str, Any] = {
            "model": self.server.address.model,
            "messages": question.messages(mark),
            "temperature": sampling.temperature,
            "seed": seed,
            "max_tokens": sampling.max_tokens,
            **self.prompt.parameters(question.num_shown, structured),
            **self.server.body,
        }
        return {name: value for name, value in body.items() if value is not None}
