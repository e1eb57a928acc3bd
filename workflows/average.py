"""The mean of scalar reward models, as a run that trackers follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from panoply.config import as_dict
from panoply.config.average import AverageConfig
from panoply.files import write_json
from panoply.hub.artefact.average import average_models, read_alike
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from panoply.seal import SEAL, seal_hash
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


@one_writer
def run_average(config: AverageConfig, logger: RunLogger) -> dict[str, Any]:
    """Averages models into `OUT/model`; returns the metrics that it leaves in `OUT/metrics.json`.

    Raises:
        FileNotFoundError, ValueError: a folder is no scalar reward model or does not fit the first,
            or `OUT` holds another run.
    """
    out = run_folder(config.out)
    folders = [Path(name).expanduser() for name in config.models]
    trackers = open_trackers(config, out)
    check_folder(out, config)
    manifests = read_alike(folders)
    # Models older than seals have no hash of their own that can be had at once.
    hashes = [seal_hash(folder) if (folder / SEAL).is_file() else "" for folder in folders]
    claim(out, config, {"models": hashes})
    tags = {"method": "average"}
    with trackers.run(as_dict(config), tags, logger, model=config.model_name):
        drift = float("nan")
        if not (out / "model").exists():  # saved by a run that died behind it
            drift = average_models(folders, out / "model")
        metrics: dict[str, Any] = {
            "averaged": [
                {
                    "model": name,
                    "sources": list(manifest.sources),
                    "pairs": manifest.data.get("pairs", {}).get("rows"),
                    "temperature": manifest.temperature,
                }
                for name, manifest in zip(config.models, manifests, strict=True)
            ],
            "num_models": len(folders),
            "drift": drift,
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return metrics
