"""Serve reward models: `python -m jobs.serve RECIPE --models NAME=WHERE ...`."""

from __future__ import annotations

from jobs._main import parse_recipe, run_workflow
from jobs.recipes import SERVE
from panoply.config.serve import ServeConfig
from panoply.report.progress import RunLogger


def main() -> None:
    """Parses a recipe and its flags, then serves until it is stopped."""
    run_workflow(run, parse_recipe("serve", SERVE))


def run(config: ServeConfig, logger: RunLogger) -> None:
    """Serves. Ray loads only now, after the models were looked at."""
    from workflows.serve import run_serve

    run_serve(config, logger)


if __name__ == "__main__":
    main()
