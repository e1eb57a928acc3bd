"""Train a gated multi-objective reward model: `python -m jobs.armorm RECIPE --out DIR`."""

from __future__ import annotations

from jobs._main import parse_recipe, print_results, run_workflow
from jobs.recipes import ARMORM


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("armorm", ARMORM)
    from workflows.armorm import run_armorm

    print_results(run_workflow(run_armorm, config), config.out)


if __name__ == "__main__":
    main()
