"""The bandit of a strategy as a named actor, and a handle with the alarms on its log.

The actor may die with its process or its node: Ray starts it again, calls in flight are repeated,
and it goes on from its log. The actor is detached, and there is one for each log: a new one takes
over from the one before, so a run that was killed can be started again at once, and a run that was
believed dead cannot write beside it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from actors.bandit import BanditActor
from panoply.config.bandit import AlarmConfig, SelectorConfig
from panoply.data.schema import digest
from panoply.data.tasks import Task
from panoply.laser.log import Log
from panoply.laser.monitor import Alarm, alarms, series, stop_requests, suspension_requests
from panoply.laser.rounds import RoundPrompt
from panoply.laser.signals import PromptOutcome
from panoply.types import Array

NAMESPACE = "panoply"
GONE_SECONDS = 30.0
"""Longest time that Ray may take to free a name."""


@dataclass(slots=True)
class BanditHandle:
    """A bandit's actor, and the alarms on its log."""

    actor: ActorProxy[BanditActor]
    log: Log
    config: AlarmConfig
    contexts: Mapping[str, Array]
    """Contexts by prompt id."""
    raised: list[Alarm] = field(default_factory=list[Alarm])
    """Alarms before the round that begins next."""

    def stop_request(self, round: int) -> Alarm | None:
        """Returns the alarm that asks for the run to stop before a round that has not begun."""
        status = ray.get(self.actor.status.remote())
        self.raised = []
        if status.round == round and not status.is_open:
            self.raised = alarms(series(self.log.read()), self.log.arms, self.config)
        return next(iter(stop_requests(self.raised)), None)

    def begin(self, round: int, tasks: Sequence[Task]) -> dict[str, str]:
        """Returns the arm of each prompt, by prompt id."""
        prompts = [RoundPrompt(t.prompt_id, t.source, self.contexts[t.prompt_id]) for t in tasks]
        requests = suspension_requests(self.raised)
        decisions = ray.get(self.actor.begin_round.remote(round, prompts, requests))
        return {decision.prompt_id: decision.arm for decision in decisions}

    def end(self, round: int, outcomes: Sequence[PromptOutcome]) -> None:
        """Rewards the bandit by the outcomes of a round."""
        ray.get(self.actor.end_round.remote(round, outcomes))


@contextmanager
def bandit_actor(
    config: SelectorConfig,
    arms: tuple[str, ...],
    num_features: int,
    log: str,
    prior_KD: Array | None = None,
) -> Generator[ActorProxy[BanditActor]]:
    """Starts the actor of a bandit, yields it, and ends it. Ray has to be connected.

    Args:
        config: bandit, signal, level, and suspension of arms.
        arms: names of the reward models.
        num_features: numbers in a context; 0 where the bandit looks at none.
        log: folder of the log, on storage that all nodes share.
        prior_KD: mean of Thompson's prior, or None.

    Raises:
        ValueError: the arguments do not fit (see `BanditActor`), before there is an actor.
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
