"""The selector as a named actor of a run.

It may die with its process or its node: Ray starts it again, calls in flight are repeated, and it
goes on from its log. The actor is detached, and there is one for each log: whoever starts takes
over from the one before, so a run that was killed can be started again at once, and a run that was
believed dead cannot write beside it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from actors.bandit import BanditActor
from panoply.config.bandit import SelectorConfig
from panoply.data.schema import digest
from panoply.types import Array

NAMESPACE = "panoply"
GONE_SECONDS = 30.0
"""The longest that Ray may take to give a name free."""


@contextmanager
def selecting(
    config: SelectorConfig,
    arms: tuple[str, ...],
    num_features: int,
    log: str,
    prior_KD: Array | None = None,
) -> Generator[ActorProxy[BanditActor]]:
    """Yields the selector's actor, and ends it afterwards. Ray has to be connected.

    Args:
        config: policy, signal, level, and how arms are sidelined.
        arms: names of the reward models.
        num_features: numbers in a context; 0 where the policy looks at nothing.
        log: folder of the log, on storage that all nodes share.
        prior_KD: mean of Thompson's prior, or None.

    Raises:
        ValueError: what `BanditActor` raises, before there is an actor.
    """
    uri = log if "://" in log else str(Path(log).expanduser().absolute())
    BanditActor(config, arms, num_features, uri, prior_KD)
    name = f"selector-{digest(uri)}"
    end(name)
    actor = ray.remote(BanditActor).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
    )
    try:
        yield actor.remote(config, arms, num_features, uri, prior_KD)
    finally:
        end(name)


def end(name: str) -> None:
    """Ends the named actor where there is one, and waits until its name is free.

    Raises:
        TimeoutError: the name does not become free.
    """
    until = time.monotonic() + GONE_SECONDS
    while time.monotonic() < until:
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # nobody has the name
            return
        with suppress(RayActorError):
            ray.kill(actor)
        time.sleep(0.05)
    raise TimeoutError(f"the actor {name!r} does not end; is the cluster alive?")
