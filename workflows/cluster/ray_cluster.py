"""The Ray cluster of a run: joining it, waiting for nodes, outliving them; where files go."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group

from panoply.hub.backbone.pretrained import silence_libraries
from panoply.hub.backbone.smollm2 import cache_root
from panoply.report.progress import RunLogger
from workflows import LOOPBACK_ONLY, starts_cluster
from workflows.cluster.rendezvous import FileTorchConfig

MAX_FAILURES = 8
"""Nodes or workers that one stage may lose; what it has finished by then is never lost."""
RESIZE_SECONDS = 30.0
"""How often Ray Train looks for nodes that came or went."""
TOLD_EVERY_SECONDS = 30.0
INTERRUPTED = 130
"""What a shell reports of a command that Ctrl-C ended."""


def connect(num_workers: int) -> None:
    """Joins the cluster named by `RAY_ADDRESS`, else starts one that this machine alone reaches.

    Raises:
        RuntimeError: Ray was imported before it could be told to listen on loopback alone.
    """
    silence_libraries()
    for name in (ray.data.__name__, ray.train.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    alone = starts_cluster()
    if alone and LOOPBACK_ONLY.items() - os.environ.items():
        raise RuntimeError(
            "Ray was imported before `workflows`, so its ports would be open to the network: "
            "import `workflows` first"
        )
    ray.init(
        address="local" if alone else None,
        num_cpus=max(os.cpu_count() or 1, num_workers) if alone else None,
        include_dashboard=False if alone else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def is_on_loopback() -> bool:
    """Whether the cluster is this machine alone, reached by nobody else."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def store_root(named: str) -> str:
    """Returns the root of the feature cache: the named one, `PANOPLY_STORE`, or the user's."""
    return named or os.environ.get("PANOPLY_STORE") or str(cache_root() / "features")


def run_folder(out: str) -> Path:
    """Returns the absolute run folder.

    Raises:
        ValueError: a relative path under a Ray job, whose working folder is temporary.
    """
    path = Path(out).expanduser()
    if not path.is_absolute() and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise ValueError(
            f"`out` is {out!r}, a relative path, but a Ray job runs in a temporary folder: "
            "give an absolute path on storage that all nodes share"
        )
    return path.absolute()


def check_or_write_config(out: Path, name: str, own: Mapping[str, Any]) -> None:
    """Writes what a run stands on to a file, or checks that the file there says the same.

    Raises:
        ValueError: the folder belongs to another configuration, or to other data.
    """
    wanted, file = json.loads(json.dumps(own)), out / name
    if file.exists():
        old = json.loads(file.read_text())
        changed = sorted(key for key in wanted if wanted[key] != old.get(key))
        if changed:
            raise ValueError(
                f"{str(out)!r} holds a run with other {', '.join(changed)} (see {name}); "
                "take another `--out`, or remove that folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(wanted, indent=1))


def await_workers(
    num_workers: int, bundle: Mapping[str, float], minutes: float, logger: RunLogger
) -> None:
    """Waits until nodes have room for the workers; an autoscaling cluster starts them meanwhile.

    Workers are elastic, so where only some of them fit in time, the run goes on with those.

    Args:
        num_workers: how many are asked for.
        bundle: resources of each.
        minutes: the longest wait.
        logger: is told what is missing.

    Raises:
        TimeoutError: there is no room for a single worker.
    """
    wanted = {name: amount for name, amount in bundle.items() if amount}
    group = placement_group([wanted] * num_workers)  # its demand is what an autoscaler sees
    begun = told = time.monotonic()
    try:
        while not group.wait(min(1.0, minutes * 60)):
            now, fit = time.monotonic(), min(num_workers, room(wanted))
            missing = f"{num_workers - fit} x {wanted}"
            if now - begun >= minutes * 60:
                if fit:
                    logger.info(f"nodes: starting with {fit} of {num_workers} workers")
                    return
                raise TimeoutError(
                    f"no node had room for a worker within {minutes:g} minutes: missing {missing}; "
                    f"the cluster has {totals()}. Add nodes, or ask for less "
                    "(`--num-workers`, `--backbone.gpus`)"
                )
            if now - told >= TOLD_EVERY_SECONDS:
                told = now
                logger.info(f"nodes: {fit} of {num_workers} workers fit, waiting for {missing}")
    finally:
        remove_placement_group(group)


def room(bundle: Mapping[str, float]) -> int:
    """Returns how many such bundles the living nodes hold when nothing else runs."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(has.get(name, 0) // n for name, n in bundle.items())) for has in alive)


def totals() -> str:
    """Returns the CPUs and GPUs of the cluster as text."""
    has = ray.cluster_resources()
    return ", ".join(f"{has.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


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
        loop: run by every worker.
        config: handed to it.
        num_workers: most workers; 0 runs the loop in this process.
        run: folder of Ray Train's own files, on storage that all nodes share.
        name: of this step in it.
        gpus: of each worker.
    """
    trainer = TorchTrainer(
        loop,
        train_loop_config=dict(config),
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
    with aborts_when_stopped():
        for tries_left in reversed(range(MAX_FAILURES + 1)):
            try:
                trainer.fit()
                return
            except ControllerError:  # its node was lost: Ray Train outlives only those of workers
                if not tries_left:
                    raise


@contextmanager
def aborts_when_stopped() -> Generator[None]:
    """Lets SIGTERM, which `ray job stop` sends, abort Ray Train as Ctrl-C does.

    Killed without that, it leaves a detached actor behind for ever. Afterwards signals do what they
    did before: Ray Train does not give Ctrl-C back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def abort(*_: object) -> None:
        if callable(signal.getsignal(signal.SIGINT)):  # Ray Train's own while it trains
            signal.raise_signal(signal.SIGINT)
        else:  # ignored, as in what a script starts in the background
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, abort)
    try:
        yield
    except SystemExit:  # Ray Train's, with 0, which would read as success
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
