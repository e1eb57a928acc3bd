"""The arms of a run, asked without waiting: models as Serve applications, the others in place.

with asking(arms, timeout, run) as arms:
    later = arms.ask("armorm", Chat(prompt, responses))     # while the policy samples on
    later.result().score_n
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import serve

from actors.ask_replica import Ask, ask_replica
from actors.function_replica import FunctionReplica
from panoply.config.serve import ServedModelConfig
from panoply.data.schema import digest
from panoply.scorers.where import LocalModel, parse_where
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Chat, ModelAnswer, RequestError
from workflows.cluster.gateway import DEPLOYMENT, cause, model_name
from workflows.cluster.models import model_app
from workflows.cluster.tenancy import holding, serve_controller, take_down

AGAIN_SECONDS = 1.0
"""Pause before an arm that is busy or was lost is asked again."""
AGAIN = (429, 503)


@dataclass(frozen=True, slots=True)
class ArmScores:
    """What an arm says of the responses to a prompt."""

    score_n: tuple[float, ...]
    """NaN where it has none."""
    failure: str
    """The first reason why a score is missing; empty where none is."""


class Arms:
    """Asks arms by their names, all prompts at the same time."""

    def __init__(self, asks: Mapping[str, Ask], timeout: float) -> None:
        """Starts a thread for the event loop in which all is asked.

        Args:
            asks: of each arm.
            timeout: seconds for one prompt, with all attempts.
        """
        self.asks, self.timeout = asks, timeout
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the thread; what was not answered never is."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def ask(self, name: str, chat: Chat) -> Future[ArmScores]:
        """Returns at once what will hold the scores of an arm."""
        return asyncio.run_coroutine_threadsafe(self._ask(name, chat), self.loop)

    async def _ask(self, name: str, chat: Chat) -> ArmScores:
        """Asks until all scores are there, or trying again cannot help, or time is over."""
        ends = time.monotonic() + self.timeout
        while True:
            left = ends - time.monotonic()
            answer = await self._once(name, chat, left)
            again, wait = _again(answer)
            if not again or time.monotonic() + wait >= ends:
                return _said(answer, len(chat.responses))
            await asyncio.sleep(wait)

    async def _once(self, name: str, chat: Chat, left: float) -> ModelAnswer | RequestError:
        request = ReplicaRequest(items=(chat,), bucket=bucket_of(chat), timeout=left)
        return await ask_replica(name, self.asks[name], request)


def _again(answer: ModelAnswer | RequestError) -> tuple[bool, float]:
    """Returns whether trying again may help, and how many seconds later."""
    if isinstance(answer, RequestError):
        return answer.status in AGAIN, answer.retry_after or AGAIN_SECONDS
    return any(score.transient for score in answer.items[0]), AGAIN_SECONDS


def _said(answer: ModelAnswer | RequestError, num: int) -> ArmScores:
    if isinstance(answer, RequestError):
        return ArmScores((float("nan"),) * num, str(answer))
    scores = answer.items[0]
    values = (float("nan") if one.score is None else float(one.score) for one in scores)
    return ArmScores(tuple(values), next((one.error for one in scores if one.error), ""))


@contextmanager
def asking(arms: Sequence[ServedModelConfig], timeout: float, run: str) -> Generator[Arms]:
    """Yields the arms; models are started first, and taken down at the end.

    Args:
        arms: resolved (`workflows.cluster.resolve_model`).
        timeout: seconds for one prompt.
        run: what the applications are named after, so that two runs on one cluster do not meet and
            one that was killed finds its own again.

    Raises:
        ValueError: a model cannot be loaded, or a function, endpoint or table cannot be had.
    """
    models = [arm for arm in arms if isinstance(parse_where(arm.where), LocalModel)]
    asks: dict[str, Ask] = {a.name: FunctionReplica(a).answer for a in arms if a not in models}
    folder = re.sub(r"\W", "_", Path(run).name, flags=re.ASCII)
    with _applications(models, f"laser_{folder}_{digest(run)[:8]}") as handles:
        asked = Arms(asks | {n: handle.answer.remote for n, handle in handles.items()}, timeout)
        try:
            yield asked
        finally:
            asked.close()


@contextmanager
def _applications(models: Sequence[ServedModelConfig], run: str) -> Generator[dict[str, Any]]:
    """Yields a handle of each model's application, which no HTTP leads to."""
    if not models:
        yield {}
        return
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    names = {arm.name: model_name(run, arm.name) for arm in models}
    with holding(run, "wait until it is over, or take another `--out`"):
        started = serve_controller() is None
        serve.start(proxy_location="Disabled")
        try:
            targets = [
                serve.RunTarget(model_app(asdict(arm)), names[arm.name], route_prefix=None)
                for arm in models
            ]
            try:
                serve.run_many(targets)
            except RuntimeError as error:
                raise ValueError(f"an arm could not be started: {reasons(names)}") from error
            yield {
                arm: serve.get_deployment_handle(DEPLOYMENT, app_name=name)
                for arm, name in names.items()
            }
        finally:
            take_down(names.values(), started=started)


def reasons(names: Mapping[str, str]) -> str:
    """Returns why applications failed, by the names of their arms."""
    known = serve.status().applications
    failed = {arm: known[name] for arm, name in names.items() if name in known}
    return "; ".join(
        f"{arm!r}: {cause(next((d.message for d in app.deployments.values()), app.message))}"
        for arm, app in failed.items()
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY")
    )
