"""Scorers of a run, asked without waiting: models as Serve applications, the others in place.

with serve_arms(scorers, timeout, run) as arms:
    future = arms.ask("armorm", Chat(prompt, responses))     # while the policy samples on
    future.result().score_n
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
from ray.serve import Application

from actors.ask_replica import Ask, ask_replica
from actors.function_replica import FunctionReplica
from panoply.config.serve import ServedModelConfig
from panoply.data.schema import digest
from panoply.scorers.where import local_models
from panoply.serve.calls import ReplicaRequest, bucket_of
from panoply.wire.request import Chat, ModelAnswer, RequestError
from workflows.cluster.gateway import DEPLOYMENT, cause, model_name
from workflows.cluster.keys import endpoint_variables, handed_keys
from workflows.cluster.models import model_app_with_keys
from workflows.cluster.tenancy import holding, serve_controller, take_down

RETRY_SECONDS = 1.0
"""Pause before an arm that is busy or was lost is asked again."""
RETRIED_STATUSES = (429, 503)


@dataclass(frozen=True, slots=True)
class ArmScores:
    """An arm's scores of the responses to a prompt."""

    score_n: tuple[float, ...]
    """NaN where a score is missing."""
    failure: str
    """The first reason why a score is missing; empty where none is."""
    transient: bool = False
    """Whether asking again later may give a score that is missing."""
    num_cut_n: tuple[int, ...] = ()
    """Tokens that limits cut away; empty where the arm did not answer."""


class Arms:
    """Asks scorers by their names, all prompts at the same time."""

    def __init__(self, asks: Mapping[str, Ask], timeout: float) -> None:
        """Starts a thread with the event loop of all requests.

        Args:
            asks: sends a request, by name of the scorer.
            timeout: seconds for one prompt, with all attempts.
        """
        self.asks, self.timeout = asks, timeout
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the thread; requests in flight are never answered."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def ask(self, name: str, chat: Chat) -> Future[ArmScores]:
        """Returns at once a future of the scores of an arm."""
        return asyncio.run_coroutine_threadsafe(self._ask(name, chat), self.loop)

    async def _ask(self, name: str, chat: Chat) -> ArmScores:
        """Asks until all scores are there, or trying again cannot help, or time is over."""
        ends = time.monotonic() + self.timeout
        while True:
            left = ends - time.monotonic()
            answer = await self._once(name, chat, left)
            delay = _retry_delay(answer)
            if delay is None or time.monotonic() + delay >= ends:
                return _arm_scores(answer, len(chat.responses))
            await asyncio.sleep(delay)

    async def _once(self, name: str, chat: Chat, left: float) -> ModelAnswer | RequestError:
        request = ReplicaRequest(items=(chat,), bucket=bucket_of(chat), timeout=left)
        return await ask_replica(name, self.asks[name], request)


def _retry_delay(answer: ModelAnswer | RequestError) -> float | None:
    """Returns the seconds after which trying again may help; None where it cannot."""
    if isinstance(answer, RequestError):
        retries = answer.status in RETRIED_STATUSES
        return (answer.retry_after or RETRY_SECONDS) if retries else None
    transient = any(score.transient for score in answer.items[0])
    return RETRY_SECONDS if transient else None


def _arm_scores(answer: ModelAnswer | RequestError, num: int) -> ArmScores:
    if isinstance(answer, RequestError):
        transient = _retry_delay(answer) is not None
        return ArmScores((float("nan"),) * num, str(answer), transient)
    values: list[float] = []
    failure, scores = "", answer.items[0]
    for score in scores:
        values.append(float("nan") if score.score is None else float(score.score))
        failure = failure or score.error
    transient = any(score.transient for score in scores)
    return ArmScores(tuple(values), failure, transient, tuple(score.num_cut for score in scores))


@contextmanager
def serve_arms(scorers: Sequence[ServedModelConfig], timeout: float, run: str) -> Generator[Arms]:
    """Starts the models among the scorers, yields all of them, and takes the models down.

    Args:
        scorers: settings, resolved (`workflows.cluster.resolve_model`).
        timeout: seconds for one prompt.
        run: name of the applications, so that two runs on one cluster do not meet and one that was
            killed finds its own again.

    Raises:
        ValueError: a model cannot be loaded, or a function, endpoint or table cannot be had.
    """
    models: list[ServedModelConfig] = []
    asks: dict[str, Ask] = {}
    for scorer in scorers:
        if local_models(scorer):
            models.append(scorer)
        else:
            asks[scorer.name] = FunctionReplica(scorer).answer
    folder = re.sub(r"\W", "_", Path(run).name, flags=re.ASCII)
    with _applications(models, f"laser_{folder}_{digest(run)[:8]}") as handles:
        arms = Arms(asks | {n: handle.answer.remote for n, handle in handles.items()}, timeout)
        try:
            yield arms
        finally:
            arms.close()


@contextmanager
def _applications(models: Sequence[ServedModelConfig], run: str) -> Generator[dict[str, Any]]:
    """Yields a handle of each model's application; none has a route."""
    if not models:
        yield {}
        return
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    names = {model.name: model_name(run, model.name) for model in models}
    with holding(run, "wait until it is over, or take another `--out`"):
        started = serve_controller() is None
        serve.start(proxy_location="Disabled")
        try:
            targets = [
                serve.RunTarget(_app(model), names[model.name], route_prefix=None)
                for model in models
            ]
            try:
                serve.run_many(targets)
            except RuntimeError as error:
                raise ValueError(f"an arm could not be started: {_failures(names)}") from error
            yield {
                model: serve.get_deployment_handle(DEPLOYMENT, app_name=name)
                for model, name in names.items()
            }
        finally:
            take_down(set(names.values()).__contains__, started=started)


def _app(model: ServedModelConfig) -> Application:
    """Returns a model's application, with the keys of what else a composite asks."""
    return model_app_with_keys(asdict(model), handed_keys(endpoint_variables([model])))


def _failures(names: Mapping[str, str]) -> str:
    """Returns the reasons why applications failed, by the names of their models."""
    applications = serve.status().applications
    failures: list[str] = []
    for model, name in names.items():
        app = applications.get(name)
        if app is not None and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            messages = [part.message for part in app.deployments.values() if part.message]
            failures.append(f"{model!r}: {cause(messages[0] if messages else app.message)}")
    return "; ".join(failures)
