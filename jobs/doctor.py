"""Examine a reward model or a judge: `python -m jobs.doctor MODEL`."""

from __future__ import annotations

import sys
from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.doctor import DoctorConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, examines the model, and prints the findings."""
    config = parse_settings("doctor", DoctorConfig)
    findings = run_workflow(run, config)
    from panoply.report.results.models import checks
    from panoply.report.terminal import print_sections

    print_sections([checks(findings)], Terminal())
    if any(finding["verdict"] == "fail" for finding in findings):
        sys.exit(1)


def run(config: DoctorConfig, logger: RunLogger) -> list[dict[str, Any]]:
    """Examines. Torch loads only now, after the settings are known to be right."""
    from panoply.hub.backbone.pretrained import silence_libraries
    from workflows.doctor import run_doctor

    silence_libraries()
    return run_doctor(config, logger)


if __name__ == "__main__":
    main()
