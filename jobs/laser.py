"""Train a policy by the reward models that a bandit chooses: `python -m jobs.laser RECIPE ...`."""

from __future__ import annotations

from jobs._main import parse_recipe, print_results, run_workflow
from jobs.recipes import LASER


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("laser", LASER)
    from workflows.laser import run_laser

    print_results(run_workflow(run_laser, config), config.out)


if __name__ == "__main__":
    main()
