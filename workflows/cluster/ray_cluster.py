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
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import ray
import ray._private.worker as ray_worker
import ray.data
import ray.train
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from panoply.files import cache_root, write_whole
from panoply.hub.backbone.pretrained import silence_libraries
from panoply.lease import guarded, lease_above
from panoply.report.progress import RunLogger, Terminated
from workflows import LOOPBACK_ONLY, starts_cluster
from workflows.cluster.keys import withheld
from workflows.cluster.rendezvous import FileTorchConfig

MAX_FAILURES = 8
"""Nodes or workers that one stage may lose; its finished parts are never lost."""
RESIZE_SECONDS = 30.0
"""Interval at which Ray Train checks for nodes that joined or left."""
COORDINATOR = "AutoscalingCoordinator"
"""Name of Ray's actor that reserves CPUs for runs of Ray Train, and its namespace."""
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
    """Keeps what Ray and other libraries tell of their progress from the terminal."""
    silence_libraries()
    for name in (ray.data.__name__, ray.train.__name__):
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


class LoopTrainer(TorchTrainer):
    """Ray Train without two actors of every fit that would do nothing here but start.

    One hands out Ray datasets, and the loops read files. The other frees the workers' CPUs when the
    controller was lost, which `run_train` does.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Returns Ray Train's own callbacks but those of the two actors."""
        idle = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]


def run_train(
    loop: Callable[[Any], None],
    config: Mapping[str, Any],
    num_workers: int,
    run: Path,
    name: str,
    gpus: float = 0.0,
) -> None:
    """Runs a Ray Train loop on one to `num_workers` workers, as nodes come and go.

    The loops of `actors` skip what is finished and do not depend on the number of workers, so a
    restart costs time and changes nothing.

    Args:
        loop: function that every worker runs.
        config: argument of the loop.
        num_workers: most workers; 0 runs the loop in this process.
        run: folder of Ray Train's own files, on storage that all nodes share.
        name: name of this step in the folder.
        gpus: GPUs of each worker.
    """
    lease = lease_above(run.absolute())

    # In bytes, since the controller would import all that the loop does.
    packed = cloudpickle.dumps((loop, dict(config))) if num_workers else None

    def guarded_loop() -> None:
        """Runs the loop with its writes refused once another run has taken the folder over."""
        with guarded(lease):
            run_loop, loop_config = cloudpickle.loads(packed) if packed else (loop, config)
            run_loop(loop_config)

    trainer = LoopTrainer(
        guarded_loop,
        torch_config=FileTorchConfig() if is_on_loopback() else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=(1, num_workers) if num_workers > 1 else num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1.0, "GPU": gpus} if gpus else None,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(run.absolute()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    if num_workers:
        free_reservation(run.absolute() / f"{name}.reservation", trainer.train_run_context.run_id)
    with aborts_when_stopped():
        for tries_left in reversed(range(MAX_FAILURES + 1)):
            reserved = reserved_groups()
            try:
                trainer.fit()
                return
            except ControllerError:
                # The controller's node was lost: Ray Train survives only the loss of workers. Its
                # actor that frees what was reserved may be lost too, and then no worker would fit.
                if not tries_left:
                    raise
                for group in reserved_groups() - reserved:
                    remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def cpus_of_worker(num_workers: int) -> int:
    """Returns the CPUs that each worker of `run_train` has; this process has the machine's."""
    return 1 if num_workers else os.cpu_count() or 1


def free_reservation(file: Path, run_id: str) -> None:
    """Frees what Ray Train reserved for a run of this step that was killed.

    Ray Train keeps CPUs for a run for three minutes after its driver was killed, in which the same
    command would wait for them.

    Args:
        file: holds the id of the last run, and that of this one afterwards.
        run_id: id that Ray Train gave this run.
    """
    if file.is_file():
        # The actor is not there where the cluster is new, and may be on a node that was lost.
        with suppress(ValueError, RayError):
            coordinator: Any = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
            freed = coordinator.cancel_request.remote(requester_id=f"train-{file.read_text()}")
            ray.get(freed, timeout=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, run_id)


def reserved_groups() -> set[str]:
    """Returns the ids of the placement groups that this job holds or waits for."""
    if not ray.is_initialized():
        return set()
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    # The id of a placement group ends with that of the job that made it.
    return {id for id, group in groups if group["state"] != "REMOVED" and id.endswith(job)}


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
