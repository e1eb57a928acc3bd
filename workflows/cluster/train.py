"""Ray Train for loops that survive the loss of nodes, and leave nothing reserved when killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import ray
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from panoply.files import write_whole
from panoply.lease import guarded, lease_above
from workflows.cluster.ray_cluster import MAX_FAILURES, aborts_when_stopped, is_on_loopback
from workflows.cluster.rendezvous import FileTorchConfig

RESIZE_SECONDS = 30.0
"""Interval at which Ray Train checks for nodes that joined or left."""
COORDINATOR = "AutoscalingCoordinator"
"""Name of Ray's actor that reserves CPUs for runs of Ray Train, and its namespace."""


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
