"""Fit a composite's numbers: `python -m jobs.calibrate FILE.yaml --pairs FILE...`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.calibrate import CalibrateConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, fits, and prints what each part adds."""
    config = parse_settings("calibrate", CalibrateConfig)
    metrics = run_workflow(run, config)
    from panoply.report.report import print_summary

    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")
    written = metrics["calibrated"]["written"]
    console.print(f"fitted numbers: {written}", soft_wrap=True)
    command = f"python -m jobs.serve models --models both=combine:{written}"
    console.print(f"next: {command}", soft_wrap=True)


def run(config: CalibrateConfig, logger: RunLogger) -> dict[str, Any]:
    """Fits. Ray and torch load only now, after the inputs were looked at."""
    from workflows.calibrate import run_calibrate

    return run_calibrate(config, logger)


if __name__ == "__main__":
    main()
