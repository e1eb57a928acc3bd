"""Measure best of n without training: `python -m jobs.best_of_n RECIPE ...`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_recipe, print_results
from jobs.recipes import BEST_OF_N
from panoply.config.best_of_n import RecordedBestOfNConfig
from panoply.config.laser import BestOfNConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("best_of_n", BEST_OF_N)
    print_results(metrics_of(run, config), config.out)


def run(config: BestOfNConfig | RecordedBestOfNConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe. Ray and torch load only now, after the inputs were looked at."""
    from workflows.best_of_n import run_best_of_n, run_recorded

    if isinstance(config, RecordedBestOfNConfig):
        return run_recorded(config, logger)
    return run_best_of_n(config, logger)


if __name__ == "__main__":
    main()
