"""One algorithm a file, read top to bottom. Ray is started, joined and asked for workers here.

Some settings are read when Ray is imported, so they are made before any file of this package.
"""

import os
import secrets
import sys

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
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Lets a node of Ray listen on loopback alone, as Ray does by default on macOS and Windows."""
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
ALONE = {
    "RAY_AUTH_MODE": "token",
    # Workers that train together connect to each other past Ray.
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    # Ray warns of its own actor pools on the terminal, and offers no other switch.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Only for a cluster that this process starts for itself."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def starts_cluster() -> bool:
    """Whether this process starts a cluster, where `RAY_ADDRESS` names none to join."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _prepare() -> None:
    """Makes the settings, in this process and in those that it starts."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not starts_cluster() or "ray" in sys.modules:  # as in every worker of somebody's cluster
        return
    os.environ.update(LOOPBACK_ONLY)
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    if not any(map(os.environ.get, TOKENS)):
        os.environ[TOKENS[0]] = secrets.token_hex(32)


_prepare()
