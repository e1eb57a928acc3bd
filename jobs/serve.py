"""Serve reward models: `python -m jobs.serve RECIPE --models NAME=WHERE ...`.

`upgrade` and `rollback` change the models of a server that runs, without a failed request.
"""

from __future__ import annotations

from typing import assert_never

from jobs._main import parse_recipe, run_workflow
from jobs.recipes import SERVE
from panoply.config.serve import ServeConfig
from panoply.config.upgrade import RollbackConfig, UpgradeConfig
from panoply.report.progress import RunLogger
from panoply.serve.local_server import join


def main() -> None:
    """Parses a recipe and its flags, then serves until it is stopped, or changes a server."""
    run_workflow(run, parse_recipe("serve", SERVE))


def run(config: ServeConfig | UpgradeConfig | RollbackConfig, logger: RunLogger) -> None:
    """Runs the command that a configuration is of."""
    match config:
        case ServeConfig():
            from workflows.serve import run_serve

            run_serve(config, logger)
        case UpgradeConfig():
            join(config.port)  # before Ray is imported
            from workflows.upgrade import run_upgrade

            run_upgrade(config, logger)
        case RollbackConfig():
            join(config.port)
            from workflows.upgrade import run_rollback

            run_rollback(config, logger)
        case _:
            assert_never(config)


if __name__ == "__main__":
    main()
