"""Starting or joining a Ray cluster, and the settings that Ray reads when it is imported."""

from __future__ import annotations

import logging
import os
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The newer reader starts a pool of actors for every read, seconds for a small folder.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # Reports are drained once per poll; the default of 2 s would pace every run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def connect(num_workers: int) -> None:
    """Joins the cluster named by `RAY_ADDRESS`, else starts one in this machine.

    Call before anything imports ray: some settings are read at import.
    """
    joins = bool(os.environ.get("RAY_ADDRESS"))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not joins:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if ray.is_initialized():
        return
    address = None if joins else "local"
    cpus = None if joins else max(os.cpu_count() or 1, num_workers)
    ray.init(
        address=address,
        num_cpus=cpus,
        include_dashboard=False if cpus else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    import ray.data  # its import sets the level of its loggers
    import ray.train

    from panoply.hub.backbone import quiet as quiet_transformers

    quiet_transformers()
    for name in (ray.data.__name__, ray.train.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)


def store_root(named: str) -> str:
    """Returns the root of the feature cache: the named one, `PANOPLY_STORE`, or the user's."""
    from panoply.hub.embedded import cache_root

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
