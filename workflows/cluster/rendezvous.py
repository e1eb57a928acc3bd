"""Rendezvous of Ray Train workers on one machine through a file.

PyTorch's own rendezvous is a port that listens on all interfaces and asks for no secret.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,  # pyright: ignore[reportPrivateUsage]
    _setup_torch_process_group,  # pyright: ignore[reportPrivateUsage]
    _TorchBackend,  # pyright: ignore[reportPrivateUsage]
)


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
        self.folder = tempfile.mkdtemp(prefix="panoply-train-")
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
