"""Sharing a cluster: names that runs hold, the state of Ray Serve, and the removal of applications.

There is one Ray Serve per cluster, with one HTTP port. Whatever a run deploys carries its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import ray
import ray._private.worker as ray_worker
from ray import serve
from ray.exceptions import RayActorError

from actors.holder import Holder

NAMESPACE = "panoply"
DEADLINE_SECONDS = 60.0
"""Time limit of each call that takes something down."""
VITAL = {"raylet", "gcs_server"}
"""Processes of Ray without which nothing runs on a cluster, by Ray's own names."""
GIVEN_FREE_SECONDS = 5.0
"""Time that Ray takes to free a name whose driver has ended."""


@contextmanager
def holding(name: str, way_out: str, description: Any = None) -> Generator[None]:
    """Holds a name on the cluster, which nobody else has until this process ends.

    Args:
        name: prefix of everything that the run deploys.
        way_out: advice for the case that somebody else holds it.
        description: of the run, for `described`.

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
            holder = actor.remote(description)
            break
        except ValueError as error:
            if time.monotonic() > until:
                raise ValueError(f"{name!r} runs on this cluster already: {way_out}") from error
            time.sleep(0.2)
    try:
        yield
    finally:
        within_deadline(lambda: ray.kill(holder))


def described(name: str) -> Any:
    """Returns the description that the holder of a name gave; None where nobody holds it."""
    try:
        holder = ray.get_actor(f"holds-{name}", namespace=NAMESPACE)
        return ray.get(holder.description.remote(), timeout=DEADLINE_SECONDS)
    except (ValueError, RayActorError):
        return None


def serve_controller() -> Any:
    """Returns Ray Serve's controller; None where it does not run."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


def serve_details() -> dict[str, Any]:
    """Returns the description of Ray Serve as in its REST API.

    Raises:
        LookupError: it does not run.
        RayActorError: its controller died.
        TimeoutError: it does not answer.
        ConnectionError: Ray has ended.
    """
    controller = serve_controller()
    if controller is None:
        raise LookupError("Ray Serve does not run on this cluster")
    # Ray tells nobody that its own node has ended: a call that was on its way would wait for long.
    answer: Any = controller.get_serve_instance_details.remote()
    ends = time.monotonic() + DEADLINE_SECONDS
    while not ray.wait([answer], timeout=1.0)[0] and time.monotonic() < ends:
        check_alive()
    details: Any = ray.get(answer, timeout=1.0)
    return details


def check_alive() -> None:
    """Checks that the processes of Ray which this process started still run.

    Raises:
        ConnectionError: one has ended, and with it the cluster.
    """
    node: Any = cast("Any", ray_worker)._global_node
    ended = sorted({kind for kind, _ in node.dead_processes()} & VITAL) if node else []
    if ended:
        raise ConnectionError(
            f"Ray's process {ended[0]!r} has ended, and with it all that ran on this cluster: give "
            "the same command again"
        )


def take_down(is_own: Callable[[str], bool], *, started: bool) -> None:
    """Deletes applications; ends Ray Serve too if this run started it and nobody else is there.

    Args:
        is_own: tells the run's own applications by their names.
        started: whether this run started Ray Serve.

    Raises:
        ConnectionError: Ray does not answer, so that its cluster is gone with all that ran on it.
    """
    within_deadline(lambda: _take_down(is_own, started))


def _take_down(is_own: Callable[[str], bool], started: bool) -> None:
    if serve_controller() is None:  # somebody else was faster
        return
    deployed = set(serve.status().applications)
    owned = {name for name in deployed if is_own(name)}
    if started and deployed == owned:
        serve.shutdown()
        return
    for name in owned:
        serve.delete(name)


def within_deadline(call: Callable[[], None]) -> None:
    """Calls Ray from a thread that nobody waits for beyond a deadline.

    Ray has no deadline for most of its calls: where its processes were killed, they never return.

    Raises:
        ConnectionError: the call did not return, or found Ray dead.
    """
    failures: list[Exception] = []

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    ends = time.monotonic() + DEADLINE_SECONDS
    while thread.is_alive() and time.monotonic() < ends:
        check_alive()
        thread.join(0.5)
    if thread.is_alive():
        raise ConnectionError(
            f"Ray does not answer within {DEADLINE_SECONDS:g} s: its processes were killed, or its "
            "cluster is gone with all that ran on it"
        )
    if failures:
        raise ConnectionError(f"Ray failed while this run was taken down: {failures[0]!r:.300}")
