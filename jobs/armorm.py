"""Train a gated multi-objective reward model: `python -m jobs.armorm RECIPE --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_recipe, print_results
from jobs.recipes import ARMORM
from panoply.config.armorm import ArmoRMConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("armorm", ARMORM)
    print_results(metrics_of(run, config), config.out)


def run(config: ArmoRMConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe. Ray and torch load only now, after the inputs were looked at."""
    from workflows.armorm import run_armorm

    return run_armorm(config, logger)


if __name__ == "__main__":
    main()
