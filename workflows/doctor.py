"""The doctor: every check of one reward model, printed or as a run that trackers follow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from panoply.config import as_dict
from panoply.config.doctor import DoctorConfig
from panoply.files import write_json
from panoply.hub.doctor import examine
from panoply.report.progress import RunLogger
from panoply.report.report import write_report
from workflows.cluster.run_folder import check_folder, claim, run_folder
from workflows.cluster.run_lease import one_writer
from workflows.cluster.tracking import git_commit, open_trackers


def run_doctor(config: DoctorConfig, logger: RunLogger) -> list[dict[str, Any]]:
    """Examines a model; returns the fields of each finding, and writes them where settings say.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the folder holds another run.
    """
    findings = track_findings(config, logger) if config.out else find(config)
    if config.json:
        path = Path(config.json).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model": config.model, "findings": findings})
    return findings


def find(config: DoctorConfig) -> list[dict[str, Any]]:
    """Returns the fields of each finding about a model."""
    findings = examine(config.model, trust_remote_code=config.trust_remote_code)
    return [asdict(finding) for finding in findings]


@one_writer
def track_findings(config: DoctorConfig, logger: RunLogger) -> list[dict[str, Any]]:
    """Returns the findings about a model, which it leaves in the folder of a run."""
    out = run_folder(config.out)
    trackers = open_trackers(config, out)
    check_folder(out, config)
    claim(out, config, {})
    tags = {"method": "doctor", "model": config.model}
    with trackers.run(as_dict(config), tags, logger):
        findings = find(config)
        verdicts = [finding["verdict"] for finding in findings]
        metrics: dict[str, Any] = {
            "model": config.model,
            "findings": findings,
            "num_warnings": verdicts.count("warning"),
            "num_failed": verdicts.count("fail"),
            "checks": {finding["check"]: finding["values"] for finding in findings},
            "git_commit": git_commit(),
        }
        write_json(out / "metrics.json", metrics)
        write_report(out)
    return findings
