"""Sharing a cluster: names that runs hold, the state of Ray Serve, and the removal of applications.

There is one Ray Serve per cluster, with one HTTP port. Whatever a run deploys carries its name.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve

from actors.holder import Holder

NAMESPACE = "panoply"
GIVEN_FREE_SECONDS = 5.0
"""Time that Ray takes to free a name whose driver has ended."""


@contextmanager
def holding(name: str, way_out: str) -> Generator[None]:
    """Holds a name on the cluster, which nobody else has until this process ends.

    Args:
        name: prefix of everything that the run deploys.
        way_out: advice for the case that somebody else holds it.

    Raises:
        ValueError: somebody else holds it.
    """
    actor = ray.remote(Holder).options(
        name=f"holds-{name}", namespace=NAMESPACE, num_cpus=0, max_restarts=-1
    )
    holder: Any
    until = time.monotonic() + GIVEN_FREE_SECONDS
    while True:
        try:
            holder = actor.remote()
            break
        except ValueError as error:
            if time.monotonic() > until:
                raise ValueError(f"{name!r} runs on this cluster already: {way_out}") from error
            time.sleep(0.2)
    try:
        yield
    finally:
        ray.kill(holder)


def serve_controller() -> Any:
    """Returns Ray Serve's controller; None where it does not run."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def serve_details() -> dict[str, Any]:
    """Returns the description of Ray Serve, which has to run, as in its REST API."""
    details: Any = ray.get(serve_controller().get_serve_instance_details.remote())
    return details


def take_down(apps: Collection[str], *, started: bool) -> None:
    """Deletes applications; ends Ray Serve too if this run started it and nobody else is there.

    Args:
        apps: names of the run's own applications.
        started: whether this run started Ray Serve.
    """
    if serve_controller() is None:  # somebody else was faster
        return
    deployed = set(serve.status().applications)
    if started and deployed <= set(apps):
        serve.shutdown()
        return
    for name in apps:
        if name in deployed:
            serve.delete(name)
