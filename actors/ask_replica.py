"""One request to a replica, with every way in which it can fail as a `RequestError`.

The one map of Ray's errors to statuses, for the gateway and for LASeR's arms. A timeout is 503 and
not 504, because 503 is what every client asks again on: ours (429, 500, 502 to 504), LASeR's arms
(429, 503), verl's, and whoever reads `transient` in `/v1/rewards`.

| what happened | status | ask again |
| --- | --- | --- |
| no answer within the request's timeout | 503 | as the client sees fit |
| the replica died, and the one asked after it died too | 503 | as the client sees fit |
| the queue before the replicas is full | 429 | after a second |
| anything else | 500 | no: the log has its class and place |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from actors.internal_error import internal_error
from panoply.serve.calls import FeedbackRequest, ReplicaRequest
from panoply.wire.request import ModelAnswer, RequestError

Ask: TypeAlias = Callable[[ReplicaRequest], Awaitable[ModelAnswer | RequestError]]
R = TypeVar("R", ReplicaRequest, FeedbackRequest)
A = TypeVar("A")
BUSY_SECONDS = 1.0
"""Pause before a full queue is worth asking again."""


async def ask_replica(
    name: str, ask: Callable[[R], Awaitable[A | RequestError]], request: R
) -> A | RequestError:
    """Returns a model's answer, or why there is none, within the request's timeout.

    Args:
        name: of the model, for the message.
        ask: sends a request to one of its replicas.
        request: sent, and sent once more where the replica dies: scoring twice does no harm, and
            an outcome counts once.
    """
    ends = time.monotonic() + request.timeout
    try:
        async with asyncio.timeout(request.timeout):
            try:
                return await ask(request)
            except RayActorError:
                left = max(0.0, ends - time.monotonic())
                return await ask(replace(request, timeout=left))
    except TimeoutError:
        seconds = round(request.timeout, 2)
        return RequestError(f"{name!r} gave no answer within {seconds:g} s", 503)
    except RayActorError:
        return RequestError(f"{name!r} lost the replica that was scoring, twice", 503)
    except BackPressureError:
        return RequestError(f"{name!r} is busy: its queue is full", 429, BUSY_SECONDS)
    except Exception as error:  # a replica's error must not end the gateway or a run
        return internal_error(f"model {name!r}", error)
