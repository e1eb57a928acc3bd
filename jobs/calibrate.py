"""Fit a composite's numbers: `python -m jobs.calibrate FILE.yaml --pairs FILE...`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.calibrate import CalibrateConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, fits, and prints what each part adds."""
    config = parse_settings("calibrate", CalibrateConfig)
    result = run_workflow(run, config)
    from panoply.report.results.calibrate import calibrated
    from panoply.report.terminal import print_sections

    console = Terminal()
    print_sections([calibrated(result)], console)
    console.print(f"fitted numbers: {result['written']}", soft_wrap=True)
    command = f"python -m jobs.serve models --models both=combine:{result['written']}"
    console.print(f"next: {command}", soft_wrap=True)


def run(config: CalibrateConfig, logger: RunLogger) -> dict[str, Any]:
    """Fits. Ray and torch load only now, after the inputs were looked at."""
    from workflows.calibrate import run_calibrate

    return run_calibrate(config, logger)


if __name__ == "__main__":
    main()
