"""Rendezvous of Ray Train workers on one machine through a file.

PyTorch's own rendezvous is a port that listens on all interfaces and asks for no secret.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,  # pyright: ignore[reportPrivateUsage]
    _setup_torch_process_group,  # pyright: ignore[reportPrivateUsage]
    _TorchBackend,  # pyright: ignore[reportPrivateUsage]
)

PREFIX = "panoply-train-"


def remove_stale_folders() -> None:
    """Removes the folders of this user's processes that were killed before they could do so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):  # it is another user's, or not of ours
            continue


@dataclass
class FileTorchConfig(TorchConfig):
    """Settings of Ray Train for workers that share a machine."""

    @property
    def backend_cls(self) -> type[FileBackend]:
        """Class that sets up the process group."""
        return FileBackend


class FileBackend(_TorchBackend):
    """Sets up a process group whose workers find each other through a file of this user alone."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Connects all workers."""
        remove_stale_folders()
        self.folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(_set_torch_distributed_env_vars)
        joining = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend="nccl" if on_gpus else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self.folder}/workers",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Ends the process group, and removes its file."""
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:  # a worker that crashed makes the above raise
            shutil.rmtree(self.folder, ignore_errors=True)
