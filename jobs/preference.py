"""Train a scalar reward model from pairs: `python -m jobs.preference RECIPE --out DIR`."""

from __future__ import annotations

from typing import Any

from jobs._main import metrics_of, parse_recipe, print_results
from jobs.recipes import PREFERENCE
from panoply.config.preference import PreferenceConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("preference", PREFERENCE)
    print_results(metrics_of(run, config), config.out)


def run(config: PreferenceConfig, logger: RunLogger) -> dict[str, Any]:
    """Runs the recipe. Ray and torch load only now, after the inputs were looked at."""
    from workflows.preference import run_preference

    return run_preference(config, logger)


if __name__ == "__main__":
    main()
