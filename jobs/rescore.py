"""Score rollouts again: `python -m jobs.rescore FILE... --arms NAME=WHERE... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.rescore import RescoreConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, scores the rollouts, and prints how the scorers compare."""
    config = parse_settings("rescore", RescoreConfig)
    metrics = run_workflow(run, config)
    from panoply.report.report import print_summary

    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")
    console.print(f"scores: replay:{config.out}/scores.parquet", soft_wrap=True)


def run(config: RescoreConfig, logger: RunLogger) -> dict[str, Any]:
    """Scores. Ray and torch load only now, after the inputs were looked at."""
    from workflows.rescore import run_rescore

    return run_rescore(config, logger)


if __name__ == "__main__":
    main()
