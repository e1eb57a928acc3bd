"""Starting or joining a Ray cluster, and where a run's files go."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray
import ray.data
import ray.train

from panoply.hub.backbone import quiet
from panoply.hub.embedded import cache_root


def connect(num_workers: int) -> None:
    """Joins the cluster named by `RAY_ADDRESS`, else starts one in this machine."""
    quiet()
    for name in (ray.data.__name__, ray.train.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    joins = bool(os.environ.get("RAY_ADDRESS"))
    ray.init(
        address=None if joins else "local",
        num_cpus=None if joins else max(os.cpu_count() or 1, num_workers),
        include_dashboard=None if joins else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


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
