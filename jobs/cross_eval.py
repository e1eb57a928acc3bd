"""Compare scorers by source: `python -m jobs.cross_eval WHERE... --pairs FILE... --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import parse_settings, run_workflow
from panoply.config.evaluate import CrossEvalConfig
from panoply.report.progress import RunLogger, Terminal


def main() -> None:
    """Parses the settings, then evaluates every scorer on every source."""
    config = parse_settings("cross_eval", CrossEvalConfig)
    result = run_workflow(run, config)
    from panoply.report.results.cross_eval import matrix
    from panoply.report.terminal import print_sections

    console = Terminal()
    print_sections([matrix(result)], console)
    console.print(f"results: {config.out}/matrix.json, drawn in {config.out}/matrix.png")


def run(config: CrossEvalConfig, logger: RunLogger) -> dict[str, Any]:
    """Evaluates. Ray and torch load only now, after the inputs were looked at."""
    from workflows.cross_eval import run_cross_eval

    return run_cross_eval(config, logger)


if __name__ == "__main__":
    main()
