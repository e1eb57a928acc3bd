"""Measure best of n without training: `python -m jobs.best_of_n RECIPE ...`."""

from __future__ import annotations

from jobs._main import parse_recipe, print_results, run_workflow
from jobs.recipes import BEST_OF_N


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("best_of_n", BEST_OF_N)
    from workflows.best_of_n import run_best_of_n

    print_results(run_workflow(run_best_of_n, config), config.out)


if __name__ == "__main__":
    main()
