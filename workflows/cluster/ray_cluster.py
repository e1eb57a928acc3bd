"""The Ray cluster of a run: join it, wait for nodes, survive their loss; and the run's folder."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.worker as ray_worker
from ray.util.placement_group import (
    placement_group,
    remove_placement_group,
)

from panoply.files import cache_root
from panoply.report.progress import RunLogger, Terminated
from workflows import LOOPBACK_ONLY, starts_cluster
from workflows.cluster.keys import withheld

MAX_FAILURES = 8
"""Nodes or workers that one stage may lose; its finished parts are never lost."""
LOG_SECONDS = 30.0
"""Interval at which a wait for nodes is logged."""

STDERR = 2
"""File descriptor of standard error."""
LEVEL_NOTICE = b"Set ray log level from environment variable"
"""Notice that Ray prints before it obeys RAY_BACKEND_LOG_LEVEL."""


def connect(num_workers: int, key_variables: Iterable[str] = ()) -> bool:
    """Joins the cluster that `RAY_ADDRESS` names, else starts one on loopback.

    Returns whether it started one, which is this machine alone and this process's.

    Args:
        num_workers: CPUs that a cluster of its own has at least.
        key_variables: environment variables that its processes shall not inherit.

    Raises:
        RuntimeError: Ray was imported before it could be set to listen on loopback alone.
    """
    silence_ray()
    if ray.is_initialized():
        return False
    is_own = starts_cluster()
    if is_own and LOOPBACK_ONLY.items() - os.environ.items():
        raise RuntimeError(
            "Ray was imported before `workflows`, so its ports would be open to the network: "
            "import `workflows` first"
        )
    # Ray prints errors of its tasks even so: of Serve's controller, say, whenever it is ended.
    ray_worker._worker_logs_enabled = False  # pyright: ignore[reportPrivateUsage]
    with withheld(key_variables), own_process_group(), stderr_without(LEVEL_NOTICE):
        ray.init(
            address="local" if is_own else None,
            num_cpus=max(os.cpu_count() or 1, num_workers) if is_own else None,
            include_dashboard=False if is_own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    if is_own:
        # Workers' logs are printed by nobody, and one process reads them ten times a second.
        node: Any = ray_worker._global_node  # pyright: ignore[reportPrivateUsage]
        node.kill_log_monitor(check_alive=False)
    return is_own


def silence_ray() -> None:
    """Keeps what Ray and transformers tell of their progress from the terminal."""
    if "transformers" in sys.modules:  # many a server has no model of its own, and needs it not
        from panoply.hub.backbone.pretrained import silence_libraries

        silence_libraries()
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def stderr_without(notice: bytes) -> Generator[None]:
    """Drops the lines with a notice from what this process writes to standard error in the block.

    Native code writes past `sys.stderr`. All other lines appear when the block ends.
    """
    stderr = os.dup(STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
            held.seek(0)
            os.write(STDERR, b"".join(line for line in held if notice not in line))


@contextmanager
def own_process_group() -> Generator[None]:
    """Keeps signals to this process's group from the processes that are started in the block.

    `timeout` and some supervisors send SIGTERM to the whole group: Ray would be gone before its
    driver can take down what it made. Ray's processes end with their driver nevertheless.
    """
    group = os.getpgrp()
    if group == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    os.setpgid(0, 0)
    try:
        yield
    finally:
        os.setpgid(0, group)


def is_on_loopback() -> bool:
    """Returns whether the cluster is this machine alone, which no other machine reaches."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def store_root(uri: str) -> str:
    """Returns the root of the feature cache: `uri`, else `PANOPLY_STORE`, else the user's cache."""
    return uri or os.environ.get("PANOPLY_STORE") or str(cache_root() / "features")


def bundle_of_worker(num_workers: int, gpus: float | None = None) -> dict[str, float]:
    """Returns resources of a worker: a CPU, and a GPU if `gpus` is None and there is one for each.

    Args:
        num_workers: workers that the cluster has.
        gpus: GPUs of each.
    """
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) >= max(1, num_workers))
    return {"CPU": 1.0, "GPU": gpus}


def await_workers(
    num_workers: int, bundle: Mapping[str, float], minutes: float, logger: RunLogger
) -> None:
    """Waits until nodes have room for the workers, while an autoscaling cluster starts nodes.

    Workers are elastic, so if only some of them fit in time, the run starts with those.

    Args:
        num_workers: most workers.
        bundle: resources of each worker.
        minutes: longest wait.
        logger: receives what is missing.

    Raises:
        TimeoutError: there is no room for a single worker.
    """
    bundle = {name: amount for name, amount in bundle.items() if amount}
    # A placement group is a demand that an autoscaler sees.
    group = placement_group([bundle] * num_workers)
    begun = logged = time.monotonic()
    try:
        while not group.wait(min(1.0, minutes * 60)):
            now = time.monotonic()
            num_fit = min(num_workers, _num_fit(bundle))
            missing = f"{num_workers - num_fit} x {bundle}"
            if now - begun >= minutes * 60:
                if num_fit:
                    logger.info(f"nodes: starting with {num_fit} of {num_workers} workers")
                    return
                total = ray.cluster_resources()
                raise TimeoutError(
                    f"no node had room for a worker within {minutes:g} minutes: missing {missing}; "
                    f"the cluster has {total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU. "
                    "Add nodes, or ask for less (`--num-workers`, `--backbone.gpus`)"
                )
            if now - logged >= LOG_SECONDS:
                logged = now
                logger.info(f"nodes: {num_fit} of {num_workers} workers fit, waiting for {missing}")
    finally:
        remove_placement_group(group)


def _num_fit(bundle: Mapping[str, float]) -> int:
    """Returns how many such bundles the living nodes hold when nothing else runs."""
    num_fit = 0
    for node in ray.nodes():
        if node["Alive"]:
            total = node["Resources"]
            num_fit += int(min(total.get(name, 0) // amount for name, amount in bundle.items()))
    return num_fit


@contextmanager
def aborts_when_stopped() -> Generator[None]:
    """Lets SIGTERM, which `ray job stop` sends, abort Ray Train as Ctrl-C does.

    Killed without that, it leaves its workers' CPUs reserved for three minutes. Afterwards signals
    have the handlers they had before, which Ray Train does not restore.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received = signal.SIGINT

    def abort(*_: object) -> None:
        nonlocal received
        received = signal.SIGTERM
        # While it trains, Ray Train handles SIGINT; a script's background job ignores it.
        if signal.getsignal(signal.SIGINT) in (before[signal.SIGINT], signal.SIG_IGN):
            raise Terminated
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, abort)
    try:
        yield
    except SystemExit:
        # Ray Train exits with 0, which would read as success.
        sys.exit(128 + received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
