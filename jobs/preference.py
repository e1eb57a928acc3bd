"""Train a scalar reward model from pairs: `python -m jobs.preference RECIPE --out DIR`."""

from __future__ import annotations

from jobs._main import parse_recipe, print_results, run_workflow
from jobs.recipes import PREFERENCE


def main() -> None:
    """Parses a recipe and its flags, runs it, and prints the results."""
    config = parse_recipe("preference", PREFERENCE)
    from workflows.preference import run_preference

    print_results(run_workflow(run_preference, config), config.out)


if __name__ == "__main__":
    main()
