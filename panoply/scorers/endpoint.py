"""Endpoints of other servers that speak one of the dialects, scored as models here are."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx2
from pydantic import JsonValue

from panoply.secret import Address, authorization, without_secrets
from panoply.wire.breaker import CircuitBreaker, CircuitState
from panoply.wire.chat_templates import TEMPLATES
from panoply.wire.limits import ItemSize
from panoply.wire.outbound import DIALECTS, Post
from panoply.wire.request import Item, RequestError, Score
from panoply.wire.retry import RetryingRequest, RewardServerError

POST_CHARACTERS = 2_000_000
"""Characters of one post. Most protocols repeat the prompt for each response, some twice, so that
responses to a long prompt are sent in several."""
HUNG_SECONDS = 10.0
"""Seconds without an answer after which a call that nobody waits for any more counts as failed."""
AT_FAULT = (400, 413, 422, 424)
"""Statuses by which a server says that the text is at fault, and not the server or its load."""


BEHIND = "the server behind this model"
"""Words for it in errors, which clients read: its address and answers are not for them."""
LOG = logging.getLogger("ray.serve")
"""Logger of the replica."""


class EndpointScorer:
    """Reward model behind an endpoint of another server.

    What that server answers is passed on as scores alone: its words, its address and its parameters
    are in no error, and its words in no log, since they may repeat the text that was sent.
    """

    def __init__(
        self,
        url: str,
        dialect: str,
        *,
        model: str = "",
        template: str = "",
        timeout: float = 120.0,
        api_key_env: str = "",
        max_concurrent: int = 64,
    ) -> None:
        """Checks the settings; no connection is made. A scorer belongs to one event loop.

        Args:
            url: address of the endpoint; without a path, the dialect's own path is added.
            dialect: one of `panoply.wire.outbound.DIALECTS`.
            model: name of the model there; empty where the server has one.
            template: family in which messages are written, where the dialect carries text alone
                (`panoply.wire.templates`).
            timeout: maximum seconds of one call of `score`, with all attempts.
            api_key_env: environment variable of the key, sent as a bearer token; a value of two
                words (`Basic ...`) is sent as it is.
            max_concurrent: maximum requests at the same time.

        Raises:
            ValueError: a setting is wrong, or there is no such variable.
        """
        Address.parse(url, "url")
        parsed = httpx2.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"`url` must be http://HOST or https://HOST, got {url!r}")
        if dialect not in DIALECTS:
            raise ValueError(f"`dialect` must be one of {list(DIALECTS)}, got {dialect!r}")
        if template and template not in TEMPLATES:
            raise ValueError(f"`template` must be empty or of {list(TEMPLATES)}, got {template!r}")
        if not timeout > 0:
            raise ValueError(f"`timeout` must be positive, got {timeout!r}")
        if max_concurrent < 1:
            raise ValueError(f"`max_concurrent` must be at least 1, got {max_concurrent!r}")
        if api_key_env and not os.environ.get(api_key_env):
            raise ValueError(f"`api_key_env` names {api_key_env!r}, which is not set on this node")
        self._dialect, self._model, self._template = DIALECTS[dialect], model, template
        self.url = url if parsed.path.strip("/") else f"{url.rstrip('/')}{self._dialect.path}"
        self._place = without_secrets(self.url)
        self.timeout, self.max_concurrent = timeout, max_concurrent
        key = os.environ.get(api_key_env, "") if api_key_env else ""
        self._http = httpx2.AsyncClient(
            headers={"Authorization": authorization(key)} if key else {},
            limits=httpx2.Limits(max_connections=max_concurrent),
        )
        self._slots = asyncio.Semaphore(max_concurrent)
        self.breaker = CircuitBreaker()

    @property
    def circuit(self) -> CircuitState:
        """State of the circuit to the server."""
        return self.breaker.state

    def about(self) -> dict[str, JsonValue]:
        """Returns what requests to it are bounded by; its own limits are the other server's."""
        return {"limits": {"requests_at_once": self.max_concurrent, "seconds": self.timeout}}

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def score(self, items: Sequence[Item]) -> tuple[tuple[Score, ...], ...]:
        """Returns the scores of all items; those that failed as errors of their response."""
        ends = time.monotonic() + self.timeout
        return tuple(await asyncio.gather(*(self._item(item, ends) for item in items)))

    async def _item(self, item: Item, ends: float) -> tuple[Score, ...]:
        """Returns the scores of an item, sent in parts where it is long."""
        size = ItemSize.of(item)
        num_characters = size.rendered if self._dialect.repeats_prompt else size.characters
        num_each = max(1, len(item.responses) * POST_CHARACTERS // max(1, num_characters))
        scores: list[Score] = []
        for start in range(0, len(item.responses), num_each):
            part = replace(item, responses=item.responses[start : start + num_each])
            scores += await self._part(part, ends)
        return tuple(scores)

    async def _part(self, item: Item, ends: float) -> tuple[Score, ...]:
        num = len(item.responses)
        try:
            posts = self._dialect.posts(item, self._model, self._template)
        except RequestError as error:
            results = [Score(error=error.message)]
        else:
            results = await asyncio.gather(*(self._post(post, ends) for post in posts))
        if len(results) == 1 < num and isinstance(results[0], Score) and not results[0].transient:
            # One response may be at fault for all that were sent with it.
            alone = [replace(item, responses=item.responses[i : i + 1]) for i in range(num)]
            results = await asyncio.gather(*(self._part(part, ends) for part in alone))
        num_each = num // len(results)
        scores: list[Score] = []
        for result in results:
            scores += [result] * num_each if isinstance(result, Score) else result
        return tuple(scores)

    async def _post(self, post: Post, ends: float) -> tuple[Score, ...] | Score:
        """Returns the scores of a post, or the error of all of them."""
        async with self._slots:
            left = ends - time.monotonic()
            late = f"{BEHIND} gave no answer within {self.timeout:g} s"
            if left <= 0:
                return Score(error=f"{late}: all requests at the same time wait", transient=True)
            if not self.breaker.admits():
                why = (
                    f"{BEHIND} failed {self.breaker.num_failed} times in a row, and is tried "
                    f"again in {self.breaker.seconds_left:.0f} s"
                )
                return Score(error=why, transient=True)
            attempts = RetryingRequest(self.url, post.payload_within, post.read, left, self.breaker)
            try:
                return tuple(map(_without_words, await attempts.post_async(self._http)))
            except asyncio.CancelledError:
                waited = time.monotonic() - attempts.begun
                if waited >= HUNG_SECONDS:
                    self.breaker.failed(waited)
                raise
            except TimeoutError:
                LOG.warning("%s gave no answer within %g s", self._place, self.timeout)
                return Score(error=late, transient=True)
            except RewardServerError as error:
                refused = error.status != 200
                what = (
                    f"answered HTTP {error.status}" if refused else "gave no answer of its protocol"
                )
                LOG.warning("%s %s", self._place, what)
                return Score(
                    error=f"{BEHIND} {what}; the server's log names it",
                    transient=error.status not in AT_FAULT,
                )
            except ValueError as error:  # half a character, or a label that is not finite
                return Score(error=f"cannot be sent as JSON: {error}"[:300])
            finally:
                self.breaker.abandoned()  # where it was a probe, and had no end


def _without_words(score: Score) -> Score:
    """Returns a score whose error, where it is one, has no words of the other server."""
    if not score.error:
        return score
    return replace(score, error=f"{BEHIND} has no score for this response")
