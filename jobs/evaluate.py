"""Score pairs with any scorer: `python -m jobs.evaluate WHERE --pairs FILE... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.evaluate import EvaluateConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, then evaluates the scorer."""
    config = parse_settings("evaluate", EvaluateConfig)
    metrics = run_workflow(run, config)
    from panoply.report.report import print_summary

    console = Terminal()
    print_summary(metrics, console)
    console.print(f"results: {config.out}, and as a page in {config.out}/report.html")


def run(config: EvaluateConfig, logger: RunLogger) -> dict[str, Any]:
    """Evaluates. Ray and torch load only now, after the inputs were looked at."""
    from workflows.evaluate import run_evaluate

    return run_evaluate(config, logger)


if __name__ == "__main__":
    main()
