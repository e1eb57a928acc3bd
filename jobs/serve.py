"""Serve reward models: `python -m jobs.serve RECIPE --models NAME=WHERE ...`."""

from __future__ import annotations

from jobs._main import parse_recipe, run_workflow
from jobs.recipes import SERVE


def main() -> None:
    """Parses a recipe and its flags, then serves until it is stopped."""
    config = parse_recipe("serve", SERVE)
    from workflows.serve import run_serve

    run_workflow(run_serve, config)


if __name__ == "__main__":
    main()
