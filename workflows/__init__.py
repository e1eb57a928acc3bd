"""One algorithm a file, read top to bottom; `cluster` holds what several of them run on Ray.

Ray reads some settings when it is imported, so they are made here, before any file of this package.
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
    # Else it tells of every database that it makes.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Setting that lets a node of Ray listen on loopback alone, the default on macOS and Windows."""
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
ALONE = {
    "RAY_AUTH_MODE": "token",
    # Workers that train together connect to each other past Ray.
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    # glibc keeps freed memory for each of up to 8 threads a core; a server's never gives it back.
    "MALLOC_ARENA_MAX": "2",
    # Serve's controller looks at all it has that often, whether or not anything happens.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Its replicas and proxies count requests for the metrics that often, in a timer each.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # The agent looks at every process of the node that often, and Ray at the node's memory.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "RAY_memory_monitor_refresh_ms": "1000",
    # It asks whether the node is about to be taken away, in a process for every fit.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Connections that never send a whole head are closed.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "actors.slow_clients:install",
    # Ray warns of its own actor pools on the terminal, and offers no other switch.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Settings only for a cluster that this process starts for itself."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def starts_cluster() -> bool:
    """Returns whether this process starts a cluster, since `RAY_ADDRESS` names none to join."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _prepare() -> None:
    """Sets the environment of this process and of those that it starts."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # Ray is imported already in every worker of a cluster.
    if not starts_cluster() or "ray" in sys.modules:
        return
    os.environ.update(LOOPBACK_ONLY)
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    if not any(map(os.environ.get, TOKENS)):
        os.environ[TOKENS[0]] = secrets.token_hex(32)


_prepare()
