"""One algorithm a file, read top to bottom. Ray is started, joined and asked for workers here.

Some settings are read when Ray is imported, so they are made before any file of this package.
"""

import os

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
ALONE = {
    "RAY_AUTH_MODE": "disabled",
    # Ray warns of its own actor pools on the terminal, and offers no other switch.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Only for a cluster that this process starts for itself."""

for _name, _value in (SETTINGS | ({} if os.environ.get("RAY_ADDRESS") else ALONE)).items():
    os.environ.setdefault(_name, _value)
