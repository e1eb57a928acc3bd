"""Train a policy by the reward models that a bandit chooses: `python -m jobs.laser RECIPE ...`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_recipe, print_results
from jobs.recipes import LASER
from panoply.config.laser import LaserConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("laser", LASER)
    print_results(metrics_of(run, config), config.out)


def run(config: LaserConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe. Ray and torch load only now, after the inputs were looked at."""
    from workflows.laser import run_laser

    return run_laser(config, logger)


if __name__ == "__main__":
    main()
